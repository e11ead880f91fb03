"""Models: encoders, fusions and the two architectures, as ``Model`` records."""

from fedcmi_jax.models.adapters import from_linen as from_linen
from fedcmi_jax.models.adapters import from_nnx as from_nnx
from fedcmi_jax.models.classifier import classifier as classifier
from fedcmi_jax.models.convolution import convolution as convolution
from fedcmi_jax.models.encoders import ENCODERS as ENCODERS
from fedcmi_jax.models.encoders import convnet as convnet
from fedcmi_jax.models.encoders import mlp as mlp
from fedcmi_jax.models.encoders import resnet18 as resnet18
from fedcmi_jax.models.frozen import frozen as frozen
from fedcmi_jax.models.fusion import FUSIONS as FUSIONS
from fedcmi_jax.models.layers import Conv as Conv
from fedcmi_jax.models.lora import lora as lora
from fedcmi_jax.models.precision import mixed_precision as mixed_precision
from fedcmi_jax.models.projectors import PROJECTORS as PROJECTORS
from fedcmi_jax.models.signal_encoders import har_conv as har_conv
from fedcmi_jax.models.signal_encoders import spectrogram_conv as spectrogram_conv
from fedcmi_jax.models.text_encoder import text as text
from fedcmi_jax.models.two_projector import two_projector as two_projector
