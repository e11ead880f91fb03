"""FedProto on top of FedAvg: Tan et al., AAAI 2022, arXiv 2105.00243; methods 5."""

from typing import Literal

import jax.numpy as jnp

from fedcmi_jax.methods.base import (
    Client,
    Cohort,
    Finished,
    Method,
    check_choice,
    check_not_negative,
    check_window,
    in_window,
)
from fedcmi_jax.prototypes import (
    ClassSums,
    Prototypes,
    class_means,
    class_sums,
    distance_logits,
    no_prototypes,
    prototype_loss,
)
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params, PyTree, Sums

Form = Literal["distance_ce", "mse"]


def fedproto(
    *,
    lam: float = 1.0,
    form: Form = "distance_ce",
    first_round: int = 1,
    last_round: int = 70,
) -> Method:
    """Pulls features towards the cohort's class means, the global prototypes Pbar.

    A client minimises, over the modalities m it has,
      CE(z, y) + lam sum_m CE(-||h_m - Pbar_m[c]||_2, y)       (``distance_ce``)
      CE(z, y) + lam sum_m mean_j mean_f (h_m - Pbar_m[y])^2   (``mse``, the paper)
    and uploads the sums of its features by class, of its final weights in eval mode:
      Pbar_m[c] <- sum_i N_{i,m}[c] P_{i,m}[c] / sum_i N_{i,m}[c]

    Weights are averaged as in FedAvg, as the public multimodal code does (the paper
    averages prototypes only). Deviations from that code: a class that no client of the
    cohort has keeps its last prototype (there it becomes the zero vector), and one
    never seen has logit -1e9; a unimodal client measures its own modality only.

    Args:
      lam: Weight of the prototype loss, >= 0; 0 is FedAvg exactly.
      form: Which loss.
      first_round: First round of the loss, counted from 0.
      last_round: Last one (public code: 70).

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

    def init_shared(model: Model, params: Params, num_clients: int) -> Prototypes:
        del params, num_clients
        return no_prototypes(model)

    def loss(
        client: Client, outputs: Outputs, batch: Batch, context: PyTree
    ) -> tuple[Array, Sums]:
        del context
        means, known = client.shared
        total = jnp.zeros(())
        for i, m in enumerate(client.model.modalities):
            has, h = batch.valid * batch.available[:, i], outputs.features[m]
            if form == "mse":
                gap = ((h - means[m][batch.labels]) ** 2).mean(-1)
                sum_m = (gap * known[m][batch.labels] * has).sum()
                total = total + sum_m / jnp.maximum(has.sum(), 1.0)
            else:
                logits = distance_logits(h, means[m], known[m])
                total = total + prototype_loss(logits, batch.labels, known[m], has)
        total = total * in_window(client.round, first_round, last_round)
        count = batch.valid.sum()
        return lam * total, {"loss_prototype": (total * count, count)}

    def finish(
        client: Client, finished: Finished, context: PyTree
    ) -> tuple[ClassSums, PyTree]:
        del context
        sums = class_sums(
            client.model, client.data, finished.params, finished.batch_stats
        )
        return sums, client.memory

    def merge(shared: Prototypes, upload: ClassSums, cohort: Cohort) -> Prototypes:
        del cohort
        return class_means(upload, shared)

    return Method(
        name="fedproto", init_shared=init_shared, loss=loss, finish=finish, merge=merge
    )
