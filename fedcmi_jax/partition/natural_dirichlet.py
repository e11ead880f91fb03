"""natural_dirichlet: every natural client split into several by label skew."""

import numpy as np

from fedcmi_jax.partition.base import Partition, natural_owners
from fedcmi_jax.partition.dirichlet import dirichlet
from fedcmi_jax.samples import Split


def natural_dirichlet(
    split: Split,
    num_clients: int,
    rng: np.random.Generator,
    *,
    per_client: int = 5,
    alpha: float = 1.0,
    min_samples: int = 5,
    max_retries: int = 1000,
    cap: float = 1.0,
    top_up: bool = False,
) -> Partition:
    """Splits the samples of each natural client by ``dirichlet`` among several clients.

    Client ``j * per_client + i`` is part i of the j-th natural client, by ascending id:
    persons differ as they do in the data, and what each part does differs by alpha.

    Args:
      split: Samples to hand out, with their natural clients.
      num_clients: Number of clients N: per_client times the natural ones, or 0, which
        says the same.
      rng: Source of all draws.
      per_client: Parts of each natural client.
      alpha: Concentration, > 0; small is skewed (the source's table: 0.1 and 5).
      min_samples: Fewest samples a part may hold.
      max_retries: Resamplings of one natural client's split in search of min_samples.
      cap: Size at which a part gets no more, in units of the mean part's.
      top_up: If no draw reaches min_samples, move random samples to the short parts.

    Returns:
      The partition.

    Raises:
      ValueError: The split has no natural clients, num_clients does not fit their
        number, an option is out of range, or no draw reached min_samples.

    Source:
      The UCI-HAR protocol of FedMultimodal, arXiv 2306.09486, and its public code:
      21 volunteers, 5 parts each, 105 clients. It takes a fifth of each volunteer's
      samples out for validation first (here: probe_fraction), and draws without end.

    Example:
      >>> labels, persons = np.arange(600) % 3, np.arange(600) // 200
      >>> split = Split({}, labels.astype(np.int32), persons)
      >>> part = natural_dirichlet(split, 0, np.random.default_rng(0), per_client=2)
      >>> part.num_clients, int(part.sizes[:2].sum())
      (6, 200)
    """
    if per_client < 1:
        raise ValueError(f"per_client={per_client}: must be at least 1")
    ids, owners = natural_owners(split)
    total = per_client * len(ids)
    if num_clients not in (0, total):
        raise ValueError(
            f"num_clients={num_clients}: {len(ids)} natural clients x per_client="
            f"{per_client} are {total}; give {total}, or 0 for all there are"
        )
    orders, sizes = [], []
    for j in range(len(ids)):
        samples = np.flatnonzero(owners == j)
        try:
            part = dirichlet(
                Split({}, split.labels[samples]),
                per_client,
                rng,
                alpha=alpha,
                min_samples=min_samples,
                max_retries=max_retries,
                cap=cap,
                top_up=top_up,
            )
        except ValueError as error:
            where = f"natural client {ids[j]}, {len(samples)} samples in {per_client}"
            raise ValueError(f"{where} parts: {error}") from None
        orders.append(samples[part.order])
        sizes.append(part.sizes)
    return Partition(np.concatenate(orders), np.concatenate(sizes))
