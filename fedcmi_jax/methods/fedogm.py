"""OGM-GE in every client: Peng et al., CVPR 2022, arXiv 2203.15332; methods 6."""

import jax
import jax.numpy as jnp

from fedcmi_jax.methods._checks import check_not_negative, check_window
from fedcmi_jax.methods._prototypes import true_class_scores
from fedcmi_jax.methods._samples import complete_samples, in_window
from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client, Step
from fedcmi_jax.types import Array, Model, Params, PyTree

NOISE_FLOOR = 1e-8
"""Added to the noise's standard deviation (original code)."""

CONV_NDIM = 4
"""Dimensions of a convolution's kernel."""


def fedogm(
    *,
    alpha: float = 0.8,
    ge: bool = True,
    first_round: int = 0,
    last_round: int | None = None,
) -> Method:
    """On-the-fly gradient modulation, with generalisation enhancement.

    On a multimodal client, with z_m modality m's share of the fused logits (W_m h_m and
    its share of the bias), over the batch's samples that have all of its modalities:
      s_m = sum_j softmax(z_m)_j[y_j],   rho_m = s_m / (mean of the others' s)
      k_m = 1 - tanh(alpha rho_m)  where rho_m > 1, else 1
    Every convolution kernel of encoder m (every matrix, if no encoder has convolutions)
    gets g <- k_m g + eps, eps ~ Normal(0, sd(g)^2), sd of the unmodulated gradient.
    For two modalities rho is the published s_a / s_v; for more the mean is ours.

    Deviations from the public multimodal code: modulation goes on to the end (there to
    round 70), and equal scores damp nobody (there the second branch of the comparison
    damps the first modality).

    Args:
      alpha: Strength, >= 0; with ``ge=False`` 0 is FedAvg exactly. The authors
        recommend 0.8 for CREMA-D, a data set of FedCMI's too, and 0.1 for VGGSound
        (README of their code): the stronger one modality, the smaller.
      ge: Add the noise.
      first_round: First round of the modulation, counted from 0.
      last_round: Last one; None: to the end (public code: 70).

    Returns:
      A method for a model whose fusion is a sum over modalities (concat, sum).

    Raises:
      ValueError: alpha is negative, the window is empty, or, when the algorithm is
        built, the fusion is no sum over modalities.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.fedogm(alpha=0.3, ge=False).name
      'fedogm'
    """
    check_not_negative(alpha=alpha)
    check_window(first_round, last_round)

    def check(model: Model, clients_per_round: int) -> None:
        del clients_per_round
        if model.shares is None:
            raise ValueError(
                "fusion: fedogm needs each modality's share of the logits, which film "
                "and gated do not have; choose concat or sum"
            )

    def update(
        client: Client, grads: Params, step: Step, context: PyTree
    ) -> tuple[Params, PyTree]:
        batch, model = step.batch, client.model
        weights = complete_samples(client, batch)
        assert model.shares is not None  # noqa: S101 (refused by check)
        shares = model.shares(step.params, step.outputs.parts)
        scores = jnp.stack(
            [
                true_class_scores(shares[m], batch.labels, weights)
                for m in model.modalities
            ]
        )
        active = in_window(client.round, first_round, last_round) * weights.sum()
        k = coefficients(scores, client.data.available, alpha)
        encoders = grads["encoder"]
        ndims = [g.ndim for g in jax.tree.leaves(encoders)]
        convolutional = CONV_NDIM in ndims

        def modulate(g: Array, coefficient: Array, key: Array) -> Array:
            if g.ndim != CONV_NDIM if convolutional else g.ndim < 2:
                return g
            changed = coefficient * g
            if ge:
                changed = changed + noise(key, g)
            return jnp.where(active > 0, changed, g)

        modulated = {}
        for i, m in enumerate(model.modalities):
            leaves, structure = jax.tree.flatten(encoders[m])
            keys = jax.random.split(jax.random.fold_in(step.key, i), len(leaves))
            changed = [
                modulate(g, k[i], key) for g, key in zip(leaves, keys, strict=True)
            ]
            modulated[m] = jax.tree.unflatten(structure, changed)
        return grads | {"encoder": modulated}, context

    return Method(name="fedogm", check=check, update=update)


def coefficients(scores: Array, available: Array, alpha: float | Array) -> Array:
    """k_m = 1 - tanh(alpha rho_m) where rho_m > 1, else 1.

    Args:
      scores: [M], s.
      available: [M], 1 for the client's modalities.
      alpha: Strength.

    Returns:
      [M].

    Example:
      >>> import jax.numpy as jnp
      >>> k = coefficients(jnp.array([3.0, 1.5]), jnp.ones(2), 1.0)
      >>> [round(float(x), 4) for x in k]  # 1 - tanh(2), 1
      [0.036, 1.0]
    """
    own = scores * available
    others = (own.sum() - own) / jnp.maximum(available.sum() - available, 1.0)
    ratios = own / jnp.maximum(others, NOISE_FLOOR)
    damped = (ratios > 1) & (available > 0) & (available.sum() >= 2)
    return jnp.where(damped, 1.0 - jnp.tanh(alpha * ratios), 1.0)


def noise(key: Array, gradient: Array) -> Array:
    """Normal noise with the (unbiased) standard deviation of the gradient's entries."""
    sd = jnp.std(gradient, ddof=1) if gradient.size > 1 else 0.0
    return (sd + NOISE_FLOOR) * jax.random.normal(key, gradient.shape, gradient.dtype)
