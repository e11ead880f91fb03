"""A federation whose clients are processes of their own, with the simulation's round.

``server`` and ``client`` are pure: the round of ``fedcmi_jax.round`` with a trainer
that looks up what clients sent, and one client's training. ``flower_server`` and
``flower_client`` carry their arrays through Flower, which the extra ``flower`` brings.
"""
