"""The base multimodal classifier: one encoder per modality and a fusion (methods 0)."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedcmi_jax.models.fusion import FUSIONS, PAIRWISE_FUSIONS
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params


class Encoders:
    """The encoders of all modalities, applied to a batch; shared by both models."""

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        shapes: Mapping[str, tuple[int, ...]],
    ):
        """Checks that every modality has an encoder and a shape."""
        if set(encoders) != set(shapes):
            raise ValueError(
                f"encoders: given for {sorted(encoders)}, but the data has "
                f"{sorted(shapes)}; name one encoder per modality"
            )
        self.modalities = tuple(shapes)
        self.modules = dict(encoders)
        self.shapes = dict(shapes)

    def init(self, key: Array) -> tuple[Params, Params]:
        """Returns (params, batch_stats), both ``{modality: tree}``."""
        params, stats = {}, {}
        for i, m in enumerate(self.modalities):
            sample = jnp.zeros((1, *self.shapes[m]))
            variables = self.modules[m].init(
                jax.random.fold_in(key, i), sample, jnp.ones(1), False
            )
            params[m] = variables["params"]
            stats[m] = variables.get("batch_stats", {})
        return params, stats

    def apply(
        self, params: Params, stats: Params, batch: Batch, train: bool
    ) -> tuple[dict[str, Array], Params]:
        """Returns features h {modality: [B, F]} and the new batch statistics."""
        features, new_stats = {}, {}
        for i, m in enumerate(self.modalities):
            features[m], updated = self.modules[m].apply(
                {"params": params[m], "batch_stats": stats[m]},
                batch.inputs[m],
                batch.valid * batch.available[:, i],
                train,
                mutable=["batch_stats"],
            )
            new_stats[m] = updated.get("batch_stats", {})
        return features, new_stats

    def widths(self) -> dict[str, int]:
        """Width F of every encoder."""
        batch = Batch(
            {m: jnp.zeros((1, *self.shapes[m])) for m in self.modalities},
            labels=jnp.zeros(1, jnp.int32),
            valid=jnp.ones(1),
            available=jnp.ones((1, len(self.modalities))),
            positions=jnp.zeros(1, jnp.int32),
        )
        features, _ = jax.eval_shape(
            lambda key: self.apply(*self.init(key), batch, False), jax.random.key(0)
        )
        return {m: features[m].shape[-1] for m in self.modalities}


def fusion_module(
    fusion: str, num_classes: int, modalities: tuple[str, ...]
) -> nn.Module:
    """The fusion module of that name.

    Raises:
      ValueError: Unknown name, or a pairwise fusion for other than two modalities.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"fusion: unknown {fusion!r}; choose from {sorted(FUSIONS)}")
    if fusion in PAIRWISE_FUSIONS and len(modalities) != 2:
        raise ValueError(
            f"fusion: {fusion!r} is defined for two modalities, the data has "
            f"{len(modalities)}; choose 'concat' or 'sum'"
        )
    return FUSIONS[fusion](num_classes)


def run(module: nn.Module, params: Params, x: Any) -> Array:
    """Output of a module without state."""
    return cast(Array, module.apply({"params": params}, x))


def fusion_shares(
    fuser: nn.Module, modalities: tuple[str, ...]
) -> Callable[[Params, dict[str, Array]], dict[str, Array]] | None:
    """``Model.shares`` of a fusion, or None if it is no sum over modalities."""
    split = getattr(fuser, "shares", None)
    if split is None:
        return None

    def shares(params: Params, parts: dict[str, Array]) -> dict[str, Array]:
        terms = split(params["fusion"], [parts[m] for m in modalities])
        return dict(zip(modalities, terms, strict=True))

    return shares


def owner_weights(available: Array, modalities: tuple[str, ...]) -> Params:
    """``{modality: available[i]}``: who shares in a modality's blocks."""
    return {m: available[i] for i, m in enumerate(modalities)}


def classifier(
    encoders: Mapping[str, nn.Module],
    shapes: Mapping[str, tuple[int, ...]],
    num_classes: int,
    *,
    fusion: str = "concat",
) -> Model:
    """z = fusion(h_1, ..., h_M), missing modalities as zero vectors.

    Blocks: ``encoder/{modality}`` (owned by clients with it), ``fusion`` (by all).

    Args:
      encoders: Modality -> linen module of ``fedcmi_jax.models.ENCODERS``.
      shapes: Modality -> shape of one sample; fixes the order of the modalities.
      num_classes: C.
      fusion: One of concat, sum, film, gated.

    Returns:
      A ``Model`` without projectors.

    Raises:
      ValueError: Encoders and shapes disagree, or the fusion does not fit.
    """
    stack = Encoders(encoders, shapes)
    modalities = stack.modalities
    widths = stack.widths()
    fuser = fusion_module(fusion, num_classes, modalities)

    def init(key: Array) -> tuple[Params, Params]:
        encoder_key, fusion_key = jax.random.split(key)
        params, stats = stack.init(encoder_key)
        zeros = [jnp.zeros((1, widths[m])) for m in modalities]
        fusion_params = fuser.init(fusion_key, zeros)["params"]
        return {"encoder": params, "fusion": fusion_params}, {"encoder": stats}

    def fuse(params: Params, parts: dict[str, Array]) -> Array:
        return run(fuser, params["fusion"], [parts[m] for m in modalities])

    def apply(
        params: Params, stats: Params, batch: Batch, train: bool
    ) -> tuple[Outputs, Params]:
        features, new_stats = stack.apply(
            params["encoder"], stats["encoder"], batch, train
        )
        shown = {
            m: features[m] * batch.available[:, i : i + 1]
            for i, m in enumerate(modalities)
        }
        outputs = Outputs(
            logits=fuse(params, shown),
            features=features,
            parts=features,
            self_logits={},
            infiltration={},
            infiltration_logits={},
        )
        return outputs, {"encoder": new_stats}

    def owned(available: Array) -> Params:
        return {
            "encoder": owner_weights(available, modalities),
            "fusion": jnp.ones(()),
        }

    return Model(
        modalities=modalities,
        num_classes=num_classes,
        has_projectors=False,
        init=init,
        apply=apply,
        fuse=fuse,
        shares=fusion_shares(fuser, modalities),
        widths=widths,
        owned=owned,
        trained=owned,
    )
