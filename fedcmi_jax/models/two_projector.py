"""FedCMI's model: per modality a self- and an infiltration projector and one head.

Fan et al., arXiv 2401.00894; methods 1.2.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedcmi_jax.models.classifier import Encoders, Fusion, owner_weights, run
from fedcmi_jax.models.layers import dense
from fedcmi_jax.models.projectors import PROJECTORS
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params, PyTree


class Head(nn.Module):
    """One modality's classifier g, applied to both of its projections."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, D] to [B, C]."""
        return dense(self.num_classes, "out")(x)


def two_projector(
    encoders: Mapping[str, Any],
    shapes: Mapping[str, PyTree],
    num_classes: int,
    *,
    fusion: Any = "concat",
    projector: str = "linear",
    width: int = 512,
    stand_in: str = "infiltration",
) -> Model:
    """h_m = enc_m(x_m), s_m = SP_m(h_m), c_m = IP_m(h_m), heads g_m on both.

    The fused logits are ``fusion(p_1, ..., p_M)`` with p_m = s_m where the sample has
    modality m; where it lacks it, p_m is the mean of c_k over the modalities k it has.
    For two modalities that is the paper's stand-in: the other one's infiltration
    projection. (For more the paper says nothing; the mean is ours.)

    Blocks: ``encoder``, ``self_projector``, ``infiltration_projector``, ``head``, each
    ``/{modality}`` and owned by the clients with the modality; ``fusion`` (by all). A
    client with one modality shares in its head's average but does not train it.

    Args:
      encoders: Modality -> module, as of ``classifier``.
      shapes: Modality -> shape of one sample, as there.
      num_classes: C.
      fusion: One of concat, sum, film, gated; or a module, as there, of M vectors
        [B, D].
      projector: ``linear`` or ``mlp`` (three layers).
      width: D, width of every projector (512 in the reference code).
      stand_in: What takes a missing modality's place in the fusion: ``infiltration``
        (above), or ``zero`` (an ablation: a zero vector, as without projectors).

    Returns:
      A ``Model`` with projectors.

    Raises:
      ValueError: As of ``classifier``, or projector or stand-in is unknown.
    """
    if stand_in not in ("infiltration", "zero"):
        raise ValueError(
            f"stand_in: unknown {stand_in!r}; choose 'infiltration' or 'zero'"
        )
    if projector not in PROJECTORS:
        raise ValueError(
            f"projector: unknown {projector!r}; choose from {sorted(PROJECTORS)}"
        )
    if width < 1:
        raise ValueError(f"width: {width} is not positive; give at least 1")
    stack = Encoders(encoders, shapes)
    modalities = stack.modalities
    widths = stack.widths
    fuser = Fusion(fusion, num_classes, {m: width for m in modalities})
    projection = PROJECTORS[projector](width)
    head = Head(num_classes)

    def init(key: Array) -> tuple[Params, Params]:
        keys = jax.random.split(key, 5)
        params, stats = stack.init(keys[0])
        d = jnp.zeros((1, width))

        def each(module: nn.Module, block_key: Array, inputs: dict[str, Array]):
            return {
                m: module.init(jax.random.fold_in(block_key, i), inputs[m])["params"]
                for i, m in enumerate(modalities)
            }

        h = {m: jnp.zeros((1, widths[m])) for m in modalities}
        blocks = {
            "encoder": params,
            "self_projector": each(projection, keys[1], h),
            "infiltration_projector": each(projection, keys[2], h),
            "head": each(head, keys[3], {m: d for m in modalities}),
            "fusion": fuser.init(keys[4]),
        }
        return blocks, {"encoder": stats}

    def apply(
        params: Params, stats: Params, batch: Batch, train: bool
    ) -> tuple[Outputs, Params]:
        features, new_stats = stack.apply(
            params["encoder"], stats["encoder"], batch, train
        )

        def project(kind: str) -> dict[str, Array]:
            return {
                m: run(projection, params[kind][m], features[m]) for m in modalities
            }

        def classify(vectors: dict[str, Array]) -> dict[str, Array]:
            return {m: run(head, params["head"][m], vectors[m]) for m in modalities}

        s, c = project("self_projector"), project("infiltration_projector")
        stand_ins = c if stand_in == "infiltration" else jax.tree.map(jnp.zeros_like, c)
        shown = replace_missing(s, stand_ins, batch.available, modalities)
        outputs = Outputs(
            logits=fuser.apply(params, shown, batch, train),
            features=features,
            parts=s,
            self_logits=classify(s),
            infiltration=c,
            infiltration_logits=classify(c),
        )
        return outputs, {"encoder": new_stats}

    def owned(available: Array) -> Params:
        own = owner_weights(available, modalities)
        return {
            "encoder": own,
            "self_projector": own,
            "infiltration_projector": own,
            "head": own,
            "fusion": jnp.ones(()),
        }

    def trained(available: Array) -> Params:
        multimodal = (available.sum() >= 2).astype(available.dtype)
        return owned(available) | {
            "head": owner_weights(available * multimodal, modalities)
        }

    return Model(
        modalities=modalities,
        num_classes=num_classes,
        has_projectors=True,
        init=init,
        apply=apply,
        fuse=fuser.fuse,
        shares=fuser.shares,
        widths=widths,
        owned=owned,
        trained=trained,
        needs_key=stack.needs_key or fuser.needs_key,
    )


def replace_missing(
    own: dict[str, Array],
    infiltration: dict[str, Array],
    available: Array,
    modalities: tuple[str, ...],
) -> dict[str, Array]:
    """p_m = s_m where present, else the mean of c_k over the present k (methods 1.2).

    Args:
      own: Modality -> [B, D], s.
      infiltration: Modality -> [B, D], c.
      available: [B, M], 1 where present.
      modalities: Names in the order of ``available``.

    Returns:
      Modality -> [B, D].
    """
    has = {m: available[:, i : i + 1] for i, m in enumerate(modalities)}
    share = 1.0 / jnp.maximum(available.sum(1, keepdims=True), 1.0)
    stand_in = share * sum(infiltration[m] * has[m] for m in modalities)
    return {m: jnp.where(has[m] > 0, own[m], stand_in) for m in modalities}
