"""``fedcmi bench``: how fast a compiled round is, alone and against other software."""
