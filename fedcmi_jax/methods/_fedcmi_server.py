"""What FedCMI's server remembers and weighs: r-bar of a cohort, owners of heads."""

from typing import NamedTuple

import jax.numpy as jnp

from fedcmi_jax.methods._fedcmi_batch import Context
from fedcmi_jax.methods.seen import Client, Cohort, LocalUpdate
from fedcmi_jax.types import Array, Mean, Model, Params, PyTree


class Ratios(NamedTuple):
    """Server-side memory of ``dominance='server'``: r-bar [M] of the last cohort."""

    ratios: Array


def init(model: Model, params: Params, num_clients: int) -> tuple[Ratios, tuple[()]]:
    """Nothing is known: r-bar is 1 for every modality."""
    del params, num_clients
    return Ratios(jnp.ones(len(model.modalities))), ()


def finish(
    client: Client, local_update: LocalUpdate, context: Context
) -> tuple[Mean, tuple[()]]:
    """Sends r-bar, which counts by n_i of the multimodal clients."""
    del local_update
    return Mean(context.ratios, client.data.num_examples * context.multimodal), ()


def merge(cohort: Cohort, upload: Mean) -> tuple[Ratios, PyTree]:
    """The cohort's mean r-bar; the last one where nobody was multimodal."""
    known = upload.weight > 0
    return Ratios(jnp.where(known, upload.value, cohort.shared.ratios)), cohort.memory


def multimodal_heads(client: Client, context: Context) -> Params:
    """n_i, but 0 for the heads of a client with one modality: it never trains them."""
    size = client.data.num_examples.astype(jnp.float32)
    return dict.fromkeys(client.params, size) | {"head": size * context.multimodal}
