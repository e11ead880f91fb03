"""Which modalities a client has."""

import numpy as np

from fedcmi_jax.partition.base import Partition
from fedcmi_jax.samples import Split


def allocate_modalities(
    num_clients: int,
    num_modalities: int,
    rng: np.random.Generator,
    *,
    multimodal_fraction: float = 0.5,
) -> np.ndarray:
    """Draws which clients have every modality, and which one the others have.

    ``int(multimodal_fraction * N)`` clients, drawn without replacement, have all
    modalities. The U others have one each: in drawn order floor(U / M) of them modality
    0, as many modality 1 and so on; of the remainder the last modalities get one client
    more. For M = 2 this is the authors' floor(U / 2) and the rest.

    Args:
      num_clients: Number of clients N.
      num_modalities: Number of modalities M.
      rng: Source of the draw.
      multimodal_fraction: Share rho of clients with all modalities, in [0, 1]
        (authors: 0.5).

    Returns:
      [N, M] bool, True where the client has the modality.

    Raises:
      ValueError: A count is below one or multimodal_fraction is outside [0, 1].

    Example:
      >>> rng = np.random.default_rng(0)
      >>> table = allocate_modalities(9, 2, rng, multimodal_fraction=0.5)
      >>> table.sum(axis=0).tolist()  # 4 with both, 2 with the first, 3 with the second
      [6, 7]
    """
    if num_clients < 1:
        raise ValueError(f"num_clients={num_clients}: must be at least 1")
    if num_modalities < 1:
        raise ValueError(f"num_modalities={num_modalities}: must be at least 1")
    if not 0 <= multimodal_fraction <= 1:
        raise ValueError(
            f"multimodal_fraction={multimodal_fraction}: must lie in [0, 1]; 1 gives "
            "every client all modalities"
        )
    num_multi = int(multimodal_fraction * num_clients)
    share, rest = divmod(num_clients - num_multi, num_modalities)
    modalities = np.arange(num_modalities)
    repeats = share + (modalities >= num_modalities - rest)
    drawn = rng.permutation(num_clients)
    available = np.zeros((num_clients, num_modalities), bool)
    available[drawn[:num_multi]] = True
    available[drawn[num_multi:], np.repeat(modalities, repeats)] = True
    return available


def drop_modalities(
    split: Split,
    partition: Partition,
    available: np.ndarray,
    rng: np.random.Generator,
    *,
    fraction: float,
) -> np.ndarray:
    """Per-sample missing modalities: which samples lack one, and which one.

    Of the samples with several of their client's modalities, round(fraction * n) lose
    one of them, drawn uniformly.

    Args:
      split: Samples; what they lack already stays missing.
      partition: Which sample belongs to which client.
      available: [N, M] table of who has what.
      rng: Source of the draws.
      fraction: Share of samples, in [0, 1].

    Returns:
      [n, M] bool in the split's order, for ``Split.available``.

    Raises:
      ValueError: fraction is outside [0, 1].

    Example:
      >>> parts = Partition(np.arange(4), np.array([2, 2]))
      >>> has = np.array([[1, 1], [1, 0]], bool)
      >>> split, rng = Split({}, np.zeros(4, np.int32)), np.random.default_rng(0)
      >>> drop_modalities(split, parts, has, rng, fraction=1.0).sum(axis=1).tolist()
      [1, 1, 2, 2]
    """
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"missing_fraction={fraction}: must lie in [0, 1]; it is the share of "
            "samples that lack a modality"
        )
    num_modalities = np.shape(available)[1]
    present = np.ones((split.size, num_modalities), bool)
    if split.available is not None:
        present = np.array(split.available, bool)
    owner = np.repeat(np.arange(len(partition.sizes)), partition.sizes)
    has = np.asarray(available, bool)[owner] & present[partition.order]
    several = np.flatnonzero(has.sum(axis=1) >= 2)
    chosen = rng.permutation(several)[: round(fraction * len(several))]
    draws = np.where(has[chosen], rng.random((len(chosen), num_modalities)), -1.0)
    present[partition.order[chosen], draws.argmax(axis=1)] = False
    return present


def check_available(
    available: np.ndarray, num_clients: int, num_modalities: int
) -> np.ndarray:
    """Returns a table of the clients' modalities as bool if it is sound.

    Args:
      available: [N, M] bool, or numbers 0 and 1.
      num_clients: Number of clients N.
      num_modalities: Number of modalities M.

    Returns:
      [N, M] bool.

    Raises:
      ValueError: The shape is wrong, an entry is neither 0 nor 1, or a client has no
        modality.

    Example:
      >>> check_available(np.array([[1, 0], [1, 1]]), 2, 2).tolist()
      [[True, False], [True, True]]
    """
    table = np.asarray(available)
    if table.shape != (num_clients, num_modalities):
        raise ValueError(
            f"available: shape {table.shape}; must be (clients, modalities) = "
            f"({num_clients}, {num_modalities})"
        )
    bad = np.argwhere((table != 0) & (table != 1))
    if len(bad):
        i, m = bad[0]
        raise ValueError(f"available[{i}, {m}]={table[i, m]}: must be 0 or 1")
    table = table.astype(bool)
    if not table.any(axis=1).all():
        raise ValueError(
            f"available: client {np.flatnonzero(~table.any(axis=1))[0]} has no "
            "modality; give it one or drop the client"
        )
    return table
