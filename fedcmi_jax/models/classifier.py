"""The base multimodal classifier: one encoder per modality and a fusion (methods 0)."""

import functools
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
            params[m], stats[m] = self._init_one(m, jax.random.fold_in(key, i))
        return params, stats

    def _init_one(self, modality: str, key: Array) -> tuple[Params, Params]:
        sample = jnp.zeros((1, *self.shapes[modality]))
        variables = self.modules[modality].init(key, sample, jnp.ones(1), False)
        return variables["params"], variables.get("batch_stats", {})

    def apply(
        self, params: Params, stats: Params, batch: Batch, train: bool
    ) -> tuple[dict[str, Array], Params]:
        """Returns features h {modality: [B, F]} and the new batch statistics."""
        features, new_stats = {}, {}
        for i, m in enumerate(self.modalities):
            mask = batch.valid * batch.available[:, i]
            features[m], new_stats[m] = self._apply_one(
                m, params[m], stats[m], batch.inputs[m], mask, train
            )
        return features, new_stats

    def _apply_one(
        self,
        modality: str,
        params: Params,
        stats: Params,
        x: Array,
        mask: Array,
        train: bool,
    ) -> tuple[Array, Params]:
        features, updated = self.modules[modality].apply(
            {"params": params, "batch_stats": stats},
            x,
            mask,
            train,
            mutable=["batch_stats"],
        )
        return features, updated.get("batch_stats", {})

    def widths(self) -> dict[str, int]:
        """Width F of every encoder, by tracing it as in training; computes nothing.

        Raises:
          ValueError: An encoder trains a stock ``flax.linen.BatchNorm``.
        """
        widths = {}
        for m in self.modalities:
            mixing: list[str] = []
            sample, mask = jnp.zeros((1, *self.shapes[m])), jnp.ones(1)

            def features(key: Array, m=m, sample=sample, mask=mask) -> Array:
                variables = self._init_one(m, key)
                return self._apply_one(m, *variables, sample, mask, True)[0]

            with nn.intercept_methods(functools.partial(_note_batch_norm, mixing)):
                shape = jax.eval_shape(features, jax.random.key(0)).shape
            if mixing:
                raise ValueError(
                    f"encoders: modality {m!r}: {mixing[0]} is flax's BatchNorm, whose "
                    "statistics count padding and missing samples; use BatchNorm of "
                    "fedcmi_jax.models.layers, nn.GroupNorm or nn.LayerNorm instead"
                )
            widths[m] = shape[-1]
        return widths


def _note_batch_norm(
    found: list[str],
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Notes the path of a stock BatchNorm that takes statistics of the batch.

    One that only reads its running statistics mixes no samples. One that is given the
    mask counts right, but divides by zero where a client lacks the modality.
    """
    module = context.module
    if isinstance(module, nn.BatchNorm) and context.method_name == "__call__":
        given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
        if not (module.use_running_average if given is None else given):
            found.append("/".join(module.path) or "the encoder itself")
    return call(*args, **kwargs)


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
      encoders: Modality -> linen module of ``fedcmi_jax.models.ENCODERS``, or any
        whose ``__call__(x, mask, train)`` maps [B, ...] to [B, F] and takes statistics
        over the batch, if at all, of the samples that mask [B] keeps.
      shapes: Modality -> shape of one sample; fixes the order of the modalities.
      num_classes: C.
      fusion: One of concat, sum, film, gated.

    Returns:
      A ``Model`` without projectors.

    Raises:
      ValueError: Encoders and shapes disagree, an encoder trains a stock
        ``flax.linen.BatchNorm``, or the fusion does not fit.
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
