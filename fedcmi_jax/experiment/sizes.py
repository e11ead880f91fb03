"""What a run will hold in memory, estimated before any of it is allocated."""

import jax

from fedcmi_jax.algorithm import FederatedAlgorithm
from fedcmi_jax.experiment.config import Config
from fedcmi_jax.experiment.split import ClientSplit
from fedcmi_jax.federation import Federation
from fedcmi_jax.memory import check_fits
from fedcmi_jax.types import FederationState


def check_samples(found: ClientSplit, devices: int) -> None:
    """Refuses training samples of which the devices' copies fill more than memory.

    Args:
      found: The split data set.
      devices: Devices of this host with a copy each; accelerators have their own
        memory, and 0 is for them.

    Raises:
      ValueError: They do not fit; has the estimate.
    """
    rows = found.partition.sizes.sum()
    inputs = found.dataset.train.inputs
    per_row = sum(x.nbytes / max(1, len(x)) for x in jax.tree.leaves(inputs))
    check_fits(
        f"clients: their {rows} training samples on {devices} devices",
        float(devices * rows * per_row),
        "give fewer devices, spread_samples or stream",
    )


def check_state(
    config: Config, algorithm: FederatedAlgorithm, federation: Federation
) -> None:
    """Refuses a federation's state that is larger than memory; computes nothing.

    Args:
      config: For the message.
      algorithm: Of it.
      federation: The federation.

    Raises:
      ValueError: It does not fit; has the estimate.
    """
    key = jax.random.key(config.seed)
    state: FederationState = jax.eval_shape(algorithm.init, key, federation)
    sizes = [
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
        for tree in (state.params, (state.memory, state.personal, state.residual))
    ]
    check_fits(
        f"encoder, model: the parameters ({sizes[0] / 1e9:.3g} GB) and what "
        f"{federation.num_clients} clients keep ({sizes[1] / 1e9:.3g} GB)",
        float(sum(sizes)),
        "give smaller widths, or fewer clients",
    )
