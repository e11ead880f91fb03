"""What a module does, found out before it is trained.

The width of its output, whether it draws random numbers, and that no sample's output
depends on padding.
"""

import warnings
from typing import Any, NamedTuple

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.models.adapters import Adapted
from fedcmi_jax.types import Array, Params, PyTree

ROWS = 3
"""Samples of an example batch, the last one padding: odd, so that no other axis of a
common size is taken for it."""

FAR = 100.0
"""Added to the padding, so that a mean over it shows."""

TOLERANCE = 1e-4
"""Relative; on accelerators, sums of equal numbers may differ between two runs."""

OWN = "fedcmi_jax.models."
"""Modules from there are tested, and not probed at every build."""


class Found(NamedTuple):
    """What a module does.

    Attributes:
      width: F, the last axis of its output.
      needs_key: Whether it draws random numbers in training.
    """

    width: int
    needs_key: bool


def samples_of(shapes: PyTree, rows: int) -> PyTree:
    """Zeros [rows, ...] for a tree of shapes; float32 unless one is a ``Shape``.

    Example:
      >>> samples_of({"video": (4, 2), "length": ()}, 3)["length"].shape
      (3,)
    """

    def zeros(shape: tuple[int, ...]) -> Array:
        dtype = jax.dtypes.canonicalize_dtype(getattr(shape, "dtype", np.float32))
        return jnp.zeros((rows, *shape), dtype)

    return jax.tree.map(zeros, shapes, is_leaf=lambda s: isinstance(s, tuple))


def probe(where: str, module: Adapted, like: PyTree) -> Found:
    """Traces a module in training and in evaluation; runs it, if it is a user's own.

    Args:
      where: Whose it is, for messages.
      module: The module.
      like: x of a batch [ROWS, ...].

    Returns:
      What it does.

    Raises:
      ValueError: Its output is not [B, F], it draws random numbers in evaluation, or
        its output or statistics depend on padding rows.

    Warns:
      UserWarning: On CPU, it has convolutions for which there are much faster ones.

    Example:
      >>> import flax.linen as nn
      >>> from fedcmi_jax.models.adapters import from_linen
      >>> probe("mine", from_linen(nn.Dense(5)), jnp.zeros((ROWS, 2)))
      Found(width=5, needs_key=False)
    """
    mask = jnp.ones(ROWS)
    key = jax.random.key(0)
    try:
        params, stats = jax.eval_shape(lambda k: module.init(k, like, mask), key)

        def training(params: Params, stats: Params, key: Array) -> Any:
            return module.apply(params, stats, like, mask, True, key)

        traced, (output, _) = jax.make_jaxpr(training, return_shape=True)(
            params, stats, key
        )
        _check_output(where, output)
        jax.eval_shape(
            lambda p, s: module.apply(p, s, like, mask, False, None), params, stats
        )
    except flax.errors.InvalidRngError as error:
        raise ValueError(
            f"{where}: draws random numbers in evaluation; let its __call__ take "
            f"'train' or 'deterministic' ({str(error).splitlines()[0]})"
        ) from None
    except ValueError as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where}: {error}") from error
    except Exception as error:  # the module's own
        error.add_note(f"{where}: raised by the module for x of shapes {_shapes(like)}")
        raise
    if not type(module.module).__module__.startswith(OWN):
        _check_padding(where, module, like)
        _name_convolutions(where, module, params, stats, like)
    return Found(output.shape[-1], _depends_on_last(traced.jaxpr))


def _depends_on_last(jaxpr: Any) -> bool:
    """Whether an output of a program may depend on its last argument."""
    live = {id(v) for v in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in live for v in equation.outvars):
            live |= {id(v) for v in equation.invars}
    return id(jaxpr.invars[-1]) in live


def _shapes(like: PyTree) -> Any:
    return jax.tree.map(lambda x: x.shape, like)


def _check_output(where: str, output: Any) -> None:
    shape = getattr(output, "shape", None)
    if shape is None:
        raise ValueError(
            f"{where}: its output is a {type(output).__name__}; give one array [B, F]"
        )
    if len(shape) != 2 or shape[0] != ROWS:
        raise ValueError(
            f"{where}: its output for {ROWS} samples has shape {shape}; give [B, F], "
            "one row of features a sample (take a mean over other axes, or flatten)"
        )


def _check_padding(where: str, module: Adapted, like: PyTree) -> None:
    """Refuses a module whose real samples feel a padding row."""
    key = jax.random.key(0)
    rng = np.random.default_rng(0)

    def drawn(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.asarray(rng.normal(size=x.shape), x.dtype)
        return x

    def moved(x: Array) -> Array:
        far = FAR if jnp.issubdtype(x.dtype, jnp.floating) else 1
        return x.at[-1].add(jnp.asarray(far, x.dtype))

    @jax.jit
    def outputs(x: PyTree, mask: Array) -> Any:
        params, stats = module.init(key, jax.tree.map(lambda v: v[:1], x), mask[:1])
        trained, new_stats = module.apply(params, stats, x, mask, True, key)
        return {
            "training": (trained[:-1], new_stats),
            "evaluation": module.apply(params, stats, x, mask, False, None)[0][:-1],
        }

    x = jax.tree.map(drawn, like)
    mask = jnp.ones(ROWS).at[-1].set(0.0)
    one, other = outputs(x, mask), outputs(jax.tree.map(moved, x), mask)
    for mode in one:
        if not _are_close(one[mode], other[mode]):
            raise ValueError(
                f"{where}: in {mode}, outputs or statistics of samples depend on a "
                "padding row of the batch; count those that the argument 'mask' [B] "
                "keeps, or use GroupNorm, LayerNorm or flax's own BatchNorm"
            )
    nobody = outputs(x, jnp.zeros(ROWS))["training"][1]
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(nobody)):
        raise ValueError(
            f"{where}: its statistics are not finite after a batch without a real "
            "sample; divide by at least 1, or use flax's own BatchNorm"
        )


def _are_close(a: PyTree, b: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        np.allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        for x, y in pairs
    )


def _name_convolutions(
    where: str, module: Adapted, params: Params, stats: Params, like: PyTree
) -> None:
    """Warns of convolutions that XLA:CPU runs slowly in loops."""
    if jax.default_backend() != "cpu":
        return
    names: list[str] = []

    def watched(params: Params, stats: Params) -> None:
        args = (params, stats, like, jnp.ones(ROWS), jax.random.key(0))
        names.extend(module.convolutions(*args))

    jax.eval_shape(watched, params, stats)
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warnings.warn(
            f"{where}: layer {names[0]}{more}: stock convolutions are 30 to 50 times "
            f"slower on CPU; {module.faster} gives the same numbers",
            stacklevel=5,  # whoever builds the model
        )
