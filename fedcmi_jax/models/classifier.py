"""The base multimodal classifier: one encoder per modality and a fusion (methods 0)."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedcmi_jax.models.adapters import Adapted, adapt
from fedcmi_jax.models.fusion import FUSIONS, PAIRWISE_FUSIONS
from fedcmi_jax.models.modes import awake
from fedcmi_jax.models.probing import ROWS, probe, samples_of
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params, PyTree


class Encoders:
    """The encoders of all modalities, applied to a batch; shared by both models.

    Attributes:
      modalities: Their names, in order.
      widths: Modality -> F.
      needs_key: Whether one draws random numbers in training.
    """

    def __init__(self, encoders: Mapping[str, Any], shapes: Mapping[str, PyTree]):
        """Checks that every modality has a shape and an encoder, which fits it."""
        if not isinstance(encoders, Mapping):
            raise ValueError(
                f"encoders: is of type {type(encoders).__name__}; give a dict with one "
                f"encoder per modality, {sorted(shapes)}"
            )
        if set(encoders) != set(shapes):
            raise ValueError(
                f"encoders: given for {sorted(encoders)}, but the data has "
                f"{sorted(shapes)}; name one encoder per modality"
            )
        self.modalities = tuple(shapes)
        self.shapes = dict(shapes)
        self.modules, found = {}, {}
        for m in self.modalities:
            where = f"encoders: modality {m!r}"
            self.modules[m] = adapted(where, encoders[m])
            found[m] = probe(where, self.modules[m], samples_of(shapes[m], ROWS))
        self.widths = {m: found[m].width for m in self.modalities}
        self.needs_key = any(f.needs_key for f in found.values())

    def init(self, key: Array) -> tuple[Params, Params]:
        """Returns (params, batch_stats), both ``{modality: tree}``."""
        params, stats = {}, {}
        for i, m in enumerate(self.modalities):
            sample = samples_of(self.shapes[m], 1)
            own = jax.random.fold_in(key, i)
            params[m], stats[m] = self.modules[m].init(own, sample, jnp.ones(1))
        return params, stats

    def apply(
        self,
        params: Params,
        stats: Params,
        batch: Batch,
        train: bool | Mapping[str, bool],
    ) -> tuple[dict[str, Array], Params]:
        """Returns features h {modality: [B, F]} and the new batch statistics.

        Raises:
          ValueError: An encoder draws random numbers, and the batch has no key.
        """
        features, new_stats = {}, {}
        for i, m in enumerate(self.modalities):
            mask = batch.valid * batch.available[:, i]
            on = awake(train, f"encoder/{m}")
            key = module_key(batch, i) if on and self.needs_key else None
            features[m], new_stats[m] = self.modules[m].apply(
                params[m], stats[m], batch.inputs[m], mask, on, key
            )
        return features, new_stats


def module_key(batch: Batch, i: int) -> Array:
    """The key of the module at place ``i`` in this step.

    Raises:
      ValueError: The batch has none.
    """
    if batch.key is None:
        raise ValueError(
            "batch: has no key, but the model draws random numbers in training; give "
            "batch._replace(key=...)"
        )
    return jax.random.fold_in(batch.key, i)


def adapted(where: str, module: Any) -> Adapted:
    """``adapt``, with its messages saying whose module it is."""
    try:
        return adapt(module)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


class Fusion:
    """The fusion of M vectors, by name or a module of the user's own.

    Attributes:
      shares: ``Model.shares``, or None.
      needs_key: Whether it draws random numbers in training.
    """

    def __init__(self, fusion: Any, num_classes: int, widths: Mapping[str, int]):
        """Checks that it fits; ``widths`` are those of its inputs."""
        self.modalities = tuple(widths)
        self._like = [(width,) for width in widths.values()]
        if isinstance(fusion, str):
            fusion = fusion_module(fusion, num_classes, self.modalities)
        self._module = adapted("fusion", fusion)
        found = probe("fusion", self._module, samples_of(self._like, ROWS))
        if found.width != num_classes:
            raise ValueError(
                f"fusion: gives {found.width} logits, the data has {num_classes} "
                "classes; give one a class"
            )
        if jax.tree.leaves(jax.eval_shape(self._init, jax.random.key(0))[1]):
            raise ValueError(
                "fusion: has batch statistics; use GroupNorm or LayerNorm there"
            )
        self.needs_key = found.needs_key
        self.shares = fusion_shares(fusion, self.modalities)

    def _init(self, key: Array) -> tuple[Params, Params]:
        return self._module.init(key, samples_of(self._like, 1), jnp.ones(1))

    def init(self, key: Array) -> Params:
        """Its parameters."""
        return self._init(key)[0]

    def fuse(self, params: Params, parts: dict[str, Array]) -> Array:
        """``Model.fuse``: logits [B, C] of the parts {modality: [B, D]}."""
        x = [parts[m] for m in self.modalities]
        mask = jnp.ones(len(x[0]))
        return self._module.apply(params["fusion"], {}, x, mask, False, None)[0]

    def apply(
        self,
        params: Params,
        parts: dict[str, Array],
        batch: Batch,
        train: bool | Mapping[str, bool],
    ) -> Array:
        """The same for a batch, in training with its random numbers."""
        x = [parts[m] for m in self.modalities]
        place = len(self.modalities)
        on = awake(train, "fusion")
        key = module_key(batch, place) if on and self.needs_key else None
        mask, own = batch.valid, params["fusion"]
        return self._module.apply(own, {}, x, mask, on, key)[0]


def fusion_module(
    fusion: str, num_classes: int, modalities: tuple[str, ...]
) -> nn.Module:
    """The fusion module of that name.

    Raises:
      ValueError: Unknown name, or a pairwise fusion for other than two modalities.
    """
    if fusion not in FUSIONS:
        raise ValueError(
            f"fusion: unknown {fusion!r}; choose from {sorted(FUSIONS)}, or give a "
            "module"
        )
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
    fuser: Any, modalities: tuple[str, ...]
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
    encoders: Mapping[str, Any],
    shapes: Mapping[str, PyTree],
    num_classes: int,
    *,
    fusion: Any = "concat",
) -> Model:
    """z = fusion(h_1, ..., h_M), missing modalities as zero vectors.

    Blocks: ``encoder/{modality}`` (owned by clients with it), ``fusion`` (by all).

    Args:
      encoders: Modality -> module of ``fedcmi_jax.models.ENCODERS``, or any linen or
        nnx module that maps [B, ...] to [B, F] (``from_linen``, ``from_nnx``).
      shapes: Modality -> shape of one sample, or a tree of them (``Dataset.shapes``);
        fixes the order of the modalities.
      num_classes: C.
      fusion: One of concat, sum, film, gated; or a module without batch statistics
        that maps the list of M features [B, F] to [B, C].

    Returns:
      A ``Model`` without projectors.

    Raises:
      ValueError: Encoders and shapes disagree; an encoder or the fusion is no module,
        its output has another shape, or padding has an effect on it.
    """
    stack = Encoders(encoders, shapes)
    modalities = stack.modalities
    fuser = Fusion(fusion, num_classes, stack.widths)

    def init(key: Array) -> tuple[Params, Params]:
        encoder_key, fusion_key = jax.random.split(key)
        params, stats = stack.init(encoder_key)
        return {"encoder": params, "fusion": fuser.init(fusion_key)}, {"encoder": stats}

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
            logits=fuser.apply(params, shown, batch, train),
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
        fuse=fuser.fuse,
        shares=fuser.shares,
        widths=stack.widths,
        owned=owned,
        trained=owned,
        needs_key=stack.needs_key or fuser.needs_key,
    )
