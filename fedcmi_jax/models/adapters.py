"""Anybody's flax module as two pure functions of parameters and statistics.

A module gets what its ``__call__`` asks for by name: ``mask``, ``train`` (or flax's
spellings of it) and random numbers. A stock BatchNorm inside counts real samples only.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedcmi_jax.types import Array, Params, PyTree

IN_TRAINING = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""Names of an argument that tells training from evaluation -> its value in training."""


class Adapted(NamedTuple):
    """A module as the models of this package call it.

    Attributes:
      module: What it was made from.
      init: ``(key, x, mask) -> (params, batch_stats)``, trees of dicts.
      apply: ``(params, batch_stats, x, mask, train, key) -> (output, batch_stats)``.
        The key is None where ``train`` is false.
      convolutions: ``(params, batch_stats, x, mask, key) -> paths`` of its layers in
        a training step that are slow on CPU.
      faster: What to put in their place.
    """

    module: Any
    init: Callable[[Array, PyTree, Array], tuple[Params, Params]]
    apply: Callable[..., tuple[Array, Params]]
    convolutions: Callable[..., list[str]]
    faster: str

    @property
    def takes_token_ids(self) -> bool:
        """Whether the module says that it does."""
        return getattr(self.module, "takes_token_ids", False)


def adapt(module: Any) -> Adapted:
    """A linen or nnx module, or what is adapted already.

    Raises:
      ValueError: It is none of these, or needs an argument that nobody gives.

    Example:
      >>> adapt(nn.Dense(3)).module.features
      3
    """
    if isinstance(module, Adapted):
        return module
    if isinstance(module, nn.Module):
        return from_linen(module)
    nnx = sys.modules.get("flax.nnx")  # imported, if the module is one of its
    if nnx is not None and isinstance(module, nnx.Module):
        return from_nnx(module)
    kind, name = ("an object", type(module).__name__)
    if inspect.isclass(module):
        kind, name = ("the class", module.__name__)
    raise ValueError(
        f"{kind} {name!r} is no module; give a flax linen or nnx module, or "
        "models.from_nnx(factory)"
    )


def from_linen(module: nn.Module) -> Adapted:
    """A ``flax.linen`` module as an encoder or a fusion.

    Its ``__call__(x)`` may take by name what it needs: ``mask`` [B], 1 for samples that
    are real and have the modality; ``train``, or ``training``, ``is_training``,
    ``deterministic``, ``use_running_average``. ``make_rng`` and Dropout draw from the
    key of the client's step. The batch statistics of a stock ``nn.BatchNorm`` are of
    the samples that the mask keeps; of none, they stay as they are.

    Args:
      module: Maps x [B, ...], an array or a tree of arrays, to [B, F]; a fusion maps
        the list of its M inputs [B, D] to [B, C].

    Returns:
      The module, for ``encoders=`` or ``fusion=``. These take plain modules, too.

    Raises:
      ValueError: It needs an argument that nobody gives.

    Example:
      >>> layer = from_linen(nn.Dropout(0.5))
      >>> x, mask = jnp.ones((1, 2)), jnp.ones(1)
      >>> layer.apply({}, {}, x, mask, False, None)[0].tolist()
      [[1.0, 1.0]]
    """
    wanted = call_names(module)

    def init(key: Array, x: PyTree, mask: Array) -> tuple[Params, Params]:
        variables = dict(module.init(key, x, **call_arguments(wanted, mask, False)))
        params, stats = variables.pop("params", {}), variables.pop("batch_stats", {})
        if variables:
            raise ValueError(
                f"{type(module).__name__} has variables of {sorted(variables)}; keep "
                "them in 'params' or 'batch_stats', nothing else is averaged"
            )
        return params, stats

    def apply(
        params: Params,
        stats: Params,
        x: PyTree,
        mask: Array,
        train: bool,
        key: Array | None,
        watch: Callable[..., Any] | None = None,
    ) -> tuple[Array, Params]:
        rngs = None
        if key is not None:
            # make_rng of any other name falls back to "params".
            rngs = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
        with nn.intercept_methods(watch or functools.partial(_masked, mask)):
            output, updated = module.apply(
                {"params": params, "batch_stats": stats},
                x,
                **call_arguments(wanted, mask, train),
                rngs=rngs,
                mutable=["batch_stats"],
            )
        return output, updated.get("batch_stats", {})

    def convolutions(
        params: Params, stats: Params, x: PyTree, mask: Array, key: Array
    ) -> list[str]:
        found: list[str] = []

        def watch(call, args, kwargs, context):
            layer = context.module
            own = getattr(layer, "conv_general_dilated_cls", None) is not None
            if isinstance(layer, nn.Conv) and not own:
                found.append("/".join(layer.path))
            return call(*args, **kwargs)

        apply(params, stats, x, mask, True, key, watch)
        return found

    return Adapted(module, init, apply, convolutions, "fedcmi_jax.models.Conv")


def from_nnx(module: Any) -> Adapted:
    """A ``flax.nnx`` module, or a function that makes one, as an encoder or a fusion.

    What ``__call__`` may take is as for ``from_linen``, ``rngs`` besides. Its train
    and eval modes follow the step. No state is hidden: parameters (``nnx.Param``) and
    statistics (``nnx.BatchStat``) are those of the federation, random numbers come
    from the key of the client's step.

    Args:
      module: A module, whose parameters every seed starts from; or ``factory(rngs)``,
        which draws them for each seed.

    Returns:
      The module, for ``encoders=`` or ``fusion=``.

    Raises:
      ValueError: It has variables of other kinds, or needs an argument that nobody
        gives.

    Example:
      >>> from flax import nnx
      >>> layer = from_nnx(lambda rngs: nnx.Linear(3, 4, rngs=rngs))
      >>> params, stats = layer.init(jax.random.key(0), jnp.ones((1, 3)), jnp.ones(1))
      >>> {name: x.shape for name, x in params.items()}
      {'bias': (4,), 'kernel': (3, 4)}
    """
    from fedcmi_jax.models.nnx_modules import adapted  # importing nnx takes its time

    return Adapted(*adapted(module))


def call_names(module: Any) -> tuple[str, ...]:
    """Names of what a module's ``__call__`` takes besides x and somebody gives.

    Raises:
      ValueError: It needs something else.
    """
    name = type(module).__name__
    parameters = list(inspect.signature(type(module).__call__).parameters.values())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    others = [p for p in parameters[2:] if p.kind in named]
    known = {"mask", "rngs", *IN_TRAINING}
    for p in others:
        if p.name not in known and p.default is p.empty:
            raise ValueError(
                f"{name}.__call__ needs {p.name!r}, which nobody gives; take it from "
                f"x, or give it a default (it may take {', '.join(sorted(known))})"
            )
    return tuple(p.name for p in others if p.name in known)


def call_arguments(
    wanted: tuple[str, ...], mask: Array, train: bool, rngs: Any = None
) -> dict[str, Any]:
    """The keyword arguments of a call."""
    values = {"mask": mask, "rngs": rngs}
    values |= {name: train == yes for name, yes in IN_TRAINING.items()}
    return {name: values[name] for name in wanted}


def _masked(
    mask: Array,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Calls a stock BatchNorm on the samples that the mask keeps, others as they are.

    One that only reads its running statistics mixes no samples.
    """
    module = context.module
    stock = nn.BatchNorm.__call__
    is_stock = isinstance(module, nn.BatchNorm) and type(module).__call__ is stock
    if not is_stock or context.method_name != "__call__":
        return call(*args, **kwargs)
    given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    reads = module.use_running_average if given is None else given
    if reads or module.is_initializing():
        return call(*args, **kwargs)
    x = args[0] if args else kwargs.pop("x")
    x, rows = real_rows(module, x, mask, kwargs.pop("mask", None))
    before: dict[str, Array] = {
        s: module.get_variable("batch_stats", s) for s in ("mean", "var")
    }
    y = call(x, *args[1:], mask=rows.counted, **kwargs)
    for name, old in before.items():
        new: Array = module.get_variable("batch_stats", name)
        module.put_variable("batch_stats", name, jnp.where(rows.any, new, old))
    return y


class Rows(NamedTuple):
    """Which rows a BatchNorm counts.

    Attributes:
      counted: Bool, of as many axes as x; all rows where none is real.
      any: Bool scalar, whether one is real.
    """

    counted: Array
    any: Array


def real_rows(norm: Any, x: Array, mask: Array, own: Any = None) -> tuple[Array, Rows]:
    """The rows of x that a stock BatchNorm of linen or nnx may count, and x for it.

    Where no sample is real, x is zero and all of it counts: finite, also in gradients,
    and of no use to anybody.

    Args:
      norm: The module.
      x: [B, ...], or [B T, ...] with a sample's rows together.
      mask: [B].
      own: A mask that the module was called with, broadcastable to x, or [B]; None:
        none.

    Raises:
      ValueError: It takes means over an axis of devices, or x has no axis of samples.

    Example:
      >>> x, rows = real_rows(nn.BatchNorm(), jnp.ones((4, 3)), jnp.array([1.0, 0.0]))
      >>> rows.counted[:, 0].tolist()
      [True, True, False, False]
    """
    if norm.axis_name is not None:
        raise ValueError(
            f"BatchNorm with axis_name={norm.axis_name!r}: a client trains on one "
            "device, there is no such axis; leave axis_name out"
        )
    if len(x) % len(mask):
        raise ValueError(
            f"BatchNorm of an array of shape {x.shape}, whose first axis is not that "
            f"of the {len(mask)} samples; keep the samples first"
        )
    counted = jnp.repeat(mask > 0, len(x) // len(mask))
    counted = counted.reshape(-1, *(1 for _ in x.shape[1:]))
    if own is not None:
        own = jnp.asarray(own, bool)
        if own.shape == x.shape[:1]:  # the samples' mask itself
            own = own.reshape(counted.shape)
        counted = counted & own
    found = counted.any()
    return jnp.where(found, x, 0), Rows(counted | ~found, found)
