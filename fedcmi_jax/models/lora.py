"""Low-rank adapters on frozen encoders: Hu et al., ICLR 2022, arXiv 2106.09685."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from fedcmi_jax.choices import begins, matching
from fedcmi_jax.models.frozen import frozen, path_of
from fedcmi_jax.models.whole import complete
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params

KERNEL = "kernel"
"""Name of a product's weights in a flax module."""


def lora(
    model: Model,
    *,
    rank: int = 4,
    alpha: float | None = None,
    layers: Iterable[str] = ("encoder/*",),
) -> Model:
    """Encoders that stay as they are, with small adapters that train in their place.

    For each kernel W [in, out] of the layers, with A [in, r] and B [r, out] (the paper
    writes W x for our x W, and A and B the other way round):
      x W' = x W + (alpha / r) x A B,    A ~ N(0, 1 / in), B = 0 at the start
    so that the model starts as it was, exactly. All of ``encoder`` is frozen
    (``models.frozen``): only A and B, in the block ``lora/{modality}``, and what is no
    encoder train and are sent. A modality's adapters are owned as its encoder is.

    W' is formed once per pass, which costs r in out products, and its gradient is that
    of W: memory for it, and time, are those of training W. What adapters save is what
    is sent, remembered and optimized.

    Args:
      model: Any model with blocks ``encoder/{modality}``, none of them frozen yet.
      rank: r, at least 1.
      alpha: Scale; None: r, so that the factor is 1.
      layers: Patterns of layers in encoders that get adapters (``choices.matching``);
        those of their kernels that have two axes do.

    Returns:
      The model, with the block ``lora``.

    Raises:
      ValueError: rank is below 1, alpha is not positive, a pattern names nothing, none
        of the layers has a kernel of two axes, or the model has frozen encoders or
        adapters already.

    Example:
      >>> import fedcmi_jax as fc
      >>> shapes = {"a": (4,), "b": (4,)}
      >>> encoders = {m: fc.models.mlp(features=8) for m in shapes}
      >>> model = lora(fc.models.classifier(encoders, shapes, 3), rank=2)
      >>> params, _ = model.init(jax.random.key(0))
      >>> jax.tree.map(jnp.shape, params["lora"]["a"])
      {'dense0': {'a': (4, 2), 'b': (2, 8)}}
    """
    if rank < 1:
        raise ValueError(f"rank: {rank} is below 1; try 4")
    alpha = float(rank) if alpha is None else alpha
    if not alpha > 0:
        raise ValueError(f"alpha: {alpha} is not positive; leave it out for {rank}")
    scale, model = alpha / rank, complete(model)
    chosen = _chosen(model, tuple(layers))

    def init(key: Array) -> tuple[Params, Params]:
        params, stats = model.init(key)
        # The base model's own draws stay those that it has without adapters.
        own = jax.random.fold_in(key, _STREAM)
        return params | {"lora": _adapters(own, params["encoder"], chosen, rank)}, stats

    def merged(params: Params) -> Params:
        base = {kind: block for kind, block in params.items() if kind != "lora"}
        return base | {"encoder": _adapted(base["encoder"], params["lora"], scale)}

    def apply(
        params: Params, stats: Params, batch: Batch, train: Any
    ) -> tuple[Outputs, Params]:
        return model.apply(merged(params), stats, batch, train)

    def adapters_of(available: Array) -> Params:
        return {m: available[model.modalities.index(m)] for m in chosen}

    return frozen(
        model._replace(
            init=init,
            apply=apply,
            owned=lambda x: model.owned(x) | {"lora": adapters_of(x)},
            trained=lambda x: model.trained(x) | {"lora": adapters_of(x)},
        ),
        ["encoder"],
    )


_STREAM = 106_09685
"""Folded into the key for A (the paper's number): W keeps the draws it has without."""


def _chosen(model: Model, patterns: tuple[str, ...]) -> dict[str, list[list[str]]]:
    """Modality -> the layers of its encoder that get adapters, as paths."""
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    if "lora" in params or any(jax.tree.leaves(model.frozen.params)):
        raise ValueError(
            "model: has adapters or frozen blocks already; lora freezes the encoders "
            "itself, so give it the model as it is without, and freeze others after"
        )
    leaves = {
        path_of(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path_of(path).startswith("encoder/")
    }
    matching("layers", patterns, list(leaves))
    found: dict[str, list[list[str]]] = {}
    for path, leaf in leaves.items():
        _, modality, *layer, name = path.split("/")
        named = any(begins(path, pattern) for pattern in patterns)
        if named and name == KERNEL and leaf.ndim == 2:
            found.setdefault(modality, []).append(layer)
    if not found:
        raise ValueError(
            f"layers: {', '.join(patterns)} has no kernel of two axes; adapters are "
            "for dense layers"
        )
    return found


def _adapters(
    key: Array, encoders: Params, chosen: dict[str, list[list[str]]], rank: int
) -> Params:
    """A and B of every chosen layer, ``{modality: {layer: {a, b}}}``."""
    adapters: Params = {}
    for i, (modality, layers) in enumerate(chosen.items()):
        for j, layer in enumerate(layers):
            kernel, place = encoders[modality], adapters.setdefault(modality, {})
            for part in layer:
                kernel, place = kernel[part], place.setdefault(part, {})
            rows, columns = kernel[KERNEL].shape
            draw = jax.random.fold_in(jax.random.fold_in(key, i), j)
            place["a"] = jax.random.normal(draw, (rows, rank)) / jnp.sqrt(rows)
            place["b"] = jnp.zeros((rank, columns))
    return adapters


def _adapted(encoder: Params, adapters: Params, scale: float) -> Params:
    """W + (alpha / r) A B wherever there are an A and a B."""
    if KERNEL in encoder and "a" in adapters:
        update = scale * (adapters["a"] @ adapters["b"])
        return encoder | {KERNEL: encoder[KERNEL] + update}
    return encoder | {
        name: _adapted(encoder[name], part, scale) for name, part in adapters.items()
    }
