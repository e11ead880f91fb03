"""The ``fedcmi`` command line."""
