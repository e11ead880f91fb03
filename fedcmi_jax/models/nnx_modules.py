"""``flax.nnx`` modules as pure functions; imported only where somebody has one."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedcmi_jax.models.adapters import call_arguments, call_names, real_rows
from fedcmi_jax.types import Array, Params, PyTree

KINDS = (nnx.Param, nnx.BatchStat, nnx.RngState)
"""Variables that somebody gives a value to in every call."""


class SampleMask(nnx.Variable):
    """[B], which samples of this call are real."""


class MaskedBatchNorm(nnx.BatchNorm):
    """A stock BatchNorm of one call, which counts the rows of ``samples`` only."""

    samples: SampleMask

    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Any = None
    ) -> Array:
        """Normalises x [B, ..., F]."""
        reads = use_running_average
        if reads is None:
            reads = self.use_running_average
        if reads:
            return super().__call__(x, reads, mask=mask)
        x, rows = real_rows(self, x, self.samples[...], mask)
        before = [(stat, stat[...]) for stat in (self.mean, self.var)]
        y = super().__call__(x, reads, mask=rows.counted)
        for stat, old in before:
            stat[...] = jnp.where(rows.any, stat[...], old)
        return y


def adapted(module: Any) -> tuple[Any, ...]:
    """The fields of ``adapters.Adapted``; see ``adapters.from_nnx``."""
    if isinstance(module, nnx.Module):
        example = module
    elif callable(module):
        _check_factory(module)
        example = nnx.eval_shape(lambda: module(nnx.Rngs(0)))
    else:
        raise ValueError(
            f"an object {type(module).__name__!r} is no nnx module, nor a function "
            "that makes one; give factory(rngs)"
        )
    if not isinstance(example, nnx.Module):
        raise ValueError(
            f"the factory makes an object {type(example).__name__!r}; let it return an "
            "nnx module"
        )
    name = type(example).__name__
    wanted = call_names(example)
    graph, *likes = _split(example)
    likes, rest = likes[:-1], jax.tree_util.tree_flatten_with_path(likes[-1])[0]
    if rest:
        raise ValueError(
            f"{name} holds {'/'.join(_path(rest[0][0]))}, which is no nnx.Param, "
            "nnx.BatchStat or random state; make it one, or compute it in __call__"
        )

    def init(key: Array, x: PyTree, mask: Array) -> tuple[Params, Params]:
        del x, mask
        made = module if isinstance(module, nnx.Module) else module(nnx.Rngs(key))
        _, params, stats, *_ = _split(made)
        return _as_dict(params), _as_dict(stats)

    def merged(params: Params, stats: Params, train: bool, key: Array | None) -> Any:
        if key is None:  # nothing is drawn
            key = jax.random.key(0)
        states = (_as_state(params, likes[0]), _as_state(stats, likes[1]))
        made = nnx.merge(graph, *states, _drawn(likes[2], key))
        (made.train if train else made.eval)()
        return made

    def apply(
        params: Params,
        stats: Params,
        x: PyTree,
        mask: Array,
        train: bool,
        key: Array | None,
    ) -> tuple[Array, Params]:
        made, rngs = merged(params, stats, train, key), None
        for _, layer in nnx.iter_modules(made):
            if type(layer) is nnx.BatchNorm:
                layer.__class__ = MaskedBatchNorm
                layer.samples = SampleMask(mask)  # type: ignore[attr-defined]
        if "rngs" in wanted and key is not None:
            rngs = nnx.Rngs(jax.random.fold_in(key, len(jax.tree.leaves(likes[2]))))
        output = made(x, **call_arguments(wanted, mask, train, rngs))
        return output, _as_dict(nnx.state(made, nnx.BatchStat))

    def convolutions(*args: Any) -> list[str]:
        del args
        return [
            "/".join(map(str, path))
            for path, layer in nnx.iter_modules(example)
            if isinstance(layer, nnx.Conv)
            and getattr(layer, "conv_general_dilated", None)
            is jax.lax.conv_general_dilated
        ]

    faster = "conv_general_dilated=fedcmi_jax.models.convolution"
    return module, init, apply, convolutions, faster


def _check_factory(factory: Any) -> None:
    # A class of nnx is called through its metaclass, which takes anything.
    is_class = inspect.isclass(factory)
    signature = inspect.signature(factory.__init__ if is_class else factory)
    try:
        signature.bind(*(("self", "rngs") if is_class else ("rngs",)))
    except TypeError:
        name = getattr(factory, "__name__", type(factory).__name__)
        raise ValueError(
            f"{name!r} cannot be called with rngs alone; give factory(rngs), such as "
            "lambda rngs: Encoder(8, rngs=rngs)"
        ) from None


def _split(module: Any) -> Any:
    return nnx.split(module, *KINDS, ...)


def _path(path: tuple[Any, ...]) -> list[str]:
    """Names along a leaf's path, without the variable's own field."""
    return [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]


def _as_dict(state: Any) -> Params:
    """A state's arrays as nested dicts of strings."""
    tree: Params = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        *kinds, name = _path(path)
        place = tree
        for kind in kinds:
            place = place.setdefault(kind, {})
        place[name] = leaf
    return tree


def _as_state(tree: Params, like: Any) -> Any:
    """The inverse: a state like another one, of these arrays."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    leaves = []
    for path, _ in paths:
        leaf: Any = tree
        for name in _path(path):
            leaf = leaf[name]
        leaves.append(leaf)
    return jax.tree.unflatten(structure, leaves)


def _drawn(like: Any, key: Array) -> Any:
    """Random state of one call: each stream has a key of its own, nothing drawn yet."""
    leaves, structure = jax.tree.flatten(like)
    states = []
    for i, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            own = jax.random.fold_in(key, i)
            states.append(jax.random.split(own, leaf.shape) if leaf.shape else own)
        else:
            states.append(jnp.zeros(leaf.shape, leaf.dtype))
    return jax.tree.unflatten(structure, states)
