"""TFDS data sets, built and read without TensorFlow.

One file per builder. Each states its files by URL, size and sha256, keeps arrays as
bytes of uint8, int16 or float32, and is prepared once below one folder, `data_root`.
"""

from fedcmi_jax.data.tfds.prepare import BUILDERS as BUILDERS
from fedcmi_jax.data.tfds.prepare import as_prepared as as_prepared
from fedcmi_jax.data.tfds.prepare import data_root as data_root
from fedcmi_jax.data.tfds.prepare import prepare as prepare
from fedcmi_jax.data.tfds.reading import as_float as as_float
from fedcmi_jax.data.tfds.reading import read_arrays as read_arrays
from fedcmi_jax.data.tfds.reading import records as records
from fedcmi_jax.data.tfds.reading import tfds as tfds
