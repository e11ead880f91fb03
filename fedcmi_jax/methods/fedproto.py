"""FedProto on top of FedAvg: Tan et al., AAAI 2022, arXiv 2105.00243; methods 5."""

from typing import Literal

import jax
import jax.numpy as jnp

from fedcmi_jax.choices import check_choice
from fedcmi_jax.methods._checks import check_features, check_not_negative, check_window
from fedcmi_jax.methods._prototypes import (
    Prototypes,
    class_sums,
    distance_logits,
    known_or_old,
    no_prototypes,
    prototype_loss,
    uploaded,
)
from fedcmi_jax.methods._samples import in_window
from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client, Cohort, LocalUpdate
from fedcmi_jax.types import Array, Batch, Mean, Model, Outputs, Params, PyTree, Sums

Form = Literal["distance_ce", "prototype_mse", "sample_mse"]


def fedproto(
    *,
    lam: float = 1.0,
    form: Form = "distance_ce",
    first_round: int = 1,
    last_round: int | None = None,
) -> Method:
    """Pulls features towards the cohort's class means, the global prototypes Pbar.

    A client minimises CE(z, y) + lam sum_m L_m over the modalities m it has, where L_m
    is one of
      CE(-||h_m - Pbar_m||_2, y)                 (``distance_ce``)
      sum_c mean_f (P_m[c] - Pbar_m[c])^2        (``prototype_mse``)
      mean_j mean_f (h_{m,j} - Pbar_m[y_j])^2    (``sample_mse``)
    and uploads the sums of its features by class, of its final weights in eval mode:
      Pbar_m[c] <- sum_i N_{i,m}[c] P_{i,m}[c] / sum_i N_{i,m}[c]
    ``distance_ce`` is the public multimodal code's. ``prototype_mse`` is the paper's
    L_R: it compares prototypes, P_m[c] being the means of the batch's classes; the
    paper leaves the distance open. ``sample_mse`` is the authors' code, which compares
    every sample.

    Weights are averaged as in FedAvg, as the public multimodal code does (the paper
    averages prototypes only). Deviations from that code: the loss goes on to the end
    (there to round 70), a class that no client of the cohort has keeps its last
    prototype (there it becomes the zero vector), and one never seen has logit -1e9; a
    unimodal client measures its own modality only.

    Args:
      lam: Weight of the prototype loss, >= 0; 0 is FedAvg exactly.
      form: Which loss: distance_ce, prototype_mse or sample_mse.
      first_round: First round of the loss, counted from 0.
      last_round: Last one; None: to the end (public code: 70).

    Raises:
      ValueError: lam is negative, form is unknown, or the window is empty.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.fedproto(lam=0.5).name
      'fedproto'
    """
    check_not_negative(lam=lam)
    check_choice("form", form, Form)
    check_window(first_round, last_round)
    term = {
        "distance_ce": _distance_ce,
        "prototype_mse": _prototype_mse,
        "sample_mse": _sample_mse,
    }[form]

    def init(
        model: Model, params: Params, num_clients: int
    ) -> tuple[Prototypes, tuple[()]]:
        del params, num_clients
        return no_prototypes(model), ()

    def loss(
        client: Client, outputs: Outputs, batch: Batch, context: PyTree
    ) -> tuple[Array, Sums]:
        del context
        means, known = client.shared
        total = jnp.zeros(())
        for i, m in enumerate(client.model.modalities):
            has, h = batch.valid * batch.available[:, i], outputs.features[m]
            total = total + term(h, means[m], known[m], batch.labels, has)
        total = total * in_window(client.round, first_round, last_round)
        count = batch.valid.sum()
        return lam * total, {"loss_prototype": (total * count, count)}

    def finish(
        client: Client, local_update: LocalUpdate, context: PyTree
    ) -> tuple[dict[str, Mean], PyTree]:
        del context
        sums = class_sums(client.model, client.data, *local_update)
        return uploaded(sums), client.memory

    def merge(cohort: Cohort, upload: dict[str, Mean]) -> tuple[Prototypes, PyTree]:
        return known_or_old(upload, cohort.shared), cohort.memory

    def check(model: Model, clients_per_round: int) -> None:
        del clients_per_round
        check_features("fedproto", model)

    return Method(
        name="fedproto", check=check, init=init, loss=loss, finish=finish, merge=merge
    )


def _distance_ce(
    features: Array, means: Array, known: Array, labels: Array, weights: Array
) -> Array:
    logits = distance_logits(features, means, known)
    return prototype_loss(logits, labels, known, weights)


def _prototype_mse(
    features: Array, means: Array, known: Array, labels: Array, weights: Array
) -> Array:
    members = jax.nn.one_hot(labels, len(known)) * weights[:, None]
    counts = members.sum(0)
    own = members.T @ features / jnp.maximum(counts, 1.0)[:, None]
    return (((own - means) ** 2).mean(-1) * known * (counts > 0)).sum()


def _sample_mse(
    features: Array, means: Array, known: Array, labels: Array, weights: Array
) -> Array:
    gaps = ((features - means[labels]) ** 2).mean(-1) * known[labels]
    return (gaps * weights).sum() / jnp.maximum(weights.sum(), 1.0)
