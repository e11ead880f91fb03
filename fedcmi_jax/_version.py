"""The installed version; looked up only when it is asked for, which takes a while."""

from importlib.metadata import version

__version__ = version("fedcmi_jax")
