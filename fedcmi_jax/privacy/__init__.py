"""Client-level differential privacy: clipped updates, noise on their sum (methods 20).

DP-FedAvg (McMahan et al., arXiv 1710.06963) with a fixed public denominator, and
adaptive clipping (Andrew et al., arXiv 1905.03871). What it guarantees, and what not:
docs/privacy.md. What a run spends is counted by ``experiment.accounting``.
"""

from fedcmi_jax.privacy.checks import SERVER_HOOKS as SERVER_HOOKS
from fedcmi_jax.privacy.checks import check as check
from fedcmi_jax.privacy.mechanism import FIRST_CLIP as FIRST_CLIP
from fedcmi_jax.privacy.mechanism import OVERFLOW as OVERFLOW
from fedcmi_jax.privacy.mechanism import REGISTRY as REGISTRY
from fedcmi_jax.privacy.mechanism import Privacy as Privacy
from fedcmi_jax.privacy.mechanism import Sampling as Sampling
from fedcmi_jax.privacy.mechanism import count_deviation as count_deviation
from fedcmi_jax.privacy.mechanism import gaussian as gaussian
from fedcmi_jax.privacy.mechanism import noise_multiplier as noise_multiplier
from fedcmi_jax.privacy.mechanism import none as none
from fedcmi_jax.privacy.mechanism import overflow as overflow
from fedcmi_jax.privacy.mechanism import places as places
from fedcmi_jax.privacy.mechanism import probability as probability
from fedcmi_jax.privacy.noise import Clipping as Clipping
from fedcmi_jax.privacy.noise import bound as bound
from fedcmi_jax.privacy.noise import clipping as clipping
from fedcmi_jax.privacy.noise import moved as moved
from fedcmi_jax.privacy.noise import private_total as private_total
from fedcmi_jax.privacy.noise import start as start
from fedcmi_jax.privacy.noise import update_noise as update_noise
