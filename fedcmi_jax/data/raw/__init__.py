"""Readers of raw files: audio, images, text, video; layouts and caches."""

from fedcmi_jax.data.raw import audio as audio
from fedcmi_jax.data.raw import cache as cache
from fedcmi_jax.data.raw import decoding as decoding
from fedcmi_jax.data.raw import digits as digits
from fedcmi_jax.data.raw import images as images
from fedcmi_jax.data.raw import layout as layout
from fedcmi_jax.data.raw import npy as npy
from fedcmi_jax.data.raw import table as table
from fedcmi_jax.data.raw import text as text
from fedcmi_jax.data.raw import video as video
