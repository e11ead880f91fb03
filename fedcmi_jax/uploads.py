"""What methods send beside parameters: trees of ``Mean`` and ``Sum``."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedcmi_jax.types import Array, Mean, PyTree, Sum


def weighted_upload(upload: PyTree) -> PyTree:
    """An upload as it adds: ``Mean(weight value, weight)``, ``Sum(value)``."""
    return map_uploads(
        upload,
        lambda leaf: Mean(
            jax.tree.map(lambda x: _expand(leaf.weight, x) * x, leaf.value), leaf.weight
        ),
    )


def mean_upload(total: PyTree) -> PyTree:
    """An upload aggregated: ``Mean`` leaves divided by their weight, 0 where it is 0.

    Args:
      total: The sum of ``weighted_upload`` over the accepted clients.
    """

    def divided(leaf: Mean) -> Mean:
        def ratio(x: Array) -> Array:
            return x * inverse(_expand(leaf.weight, x))

        return Mean(jax.tree.map(ratio, leaf.value), leaf.weight)

    return map_uploads(total, divided)


def map_uploads(
    upload: PyTree,
    mean: Callable[..., Mean],
    total: Callable[..., Sum] = lambda leaf, *others: leaf,
    *others: PyTree,
) -> PyTree:
    """Maps the ``Mean`` and ``Sum`` leaves of an upload.

    Args:
      upload: The upload.
      mean: Of a ``Mean``, and of what others have in its place.
      total: The same of a ``Sum``; by default it stays.
      *others: Uploads of the same structure.

    Raises:
      ValueError: An array is in neither.
    """

    def one(leaf: PyTree, *rest: PyTree) -> PyTree:
        if isinstance(leaf, Mean):
            return mean(leaf, *rest)
        if isinstance(leaf, Sum):
            return total(leaf, *rest)
        raise ValueError(
            f"upload: has a bare {type(leaf).__name__}; wrap it in methods.Mean(value, "
            "weight) or methods.Sum(value)"
        )

    is_leaf = lambda x: isinstance(x, (Mean, Sum))  # noqa: E731
    return jax.tree.map(one, upload, *others, is_leaf=is_leaf)


def map_values(fn: Callable[[Array], Array], upload: PyTree) -> PyTree:
    """``fn`` of every array of values in an upload; weights stay.

    Example:
      >>> map_values(lambda x: 2 * x, Sum(3.0))
      Sum(value=6.0)
    """
    return map_uploads(
        upload,
        lambda leaf: leaf._replace(value=jax.tree.map(fn, leaf.value)),
        lambda leaf: leaf._replace(value=jax.tree.map(fn, leaf.value)),
    )


def values_of(upload: PyTree) -> list[Array]:
    """The arrays of values in an upload, without the weights.

    Example:
      >>> values_of((Sum(3.0), Mean(1.0, 2.0)))
      [3.0, 1.0]
    """
    values: list[Array] = []

    def take(x: Array) -> Array:
        values.append(x)
        return x

    map_values(take, upload)
    return values


def is_like_params(part: PyTree, blocks: PyTree) -> bool:
    """Whether a part of an upload has the blocks of the parameters, as SCAFFOLD's has.

    Args:
      part: Of the upload; the whole of it, or an item where it is a tuple.
      blocks: A prefix tree of the parameters.

    Example:
      >>> [is_like_params(part, {"head": 0.0}) for part in ({"head": 1.0}, ())]
      [True, False]
    """
    return isinstance(part, dict) and part.keys() == blocks.keys()


def _expand(weight: Array, x: Array) -> Array:
    """The weight with axes of length 1 behind its own, to multiply x."""
    weight = jnp.asarray(weight)
    return weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))


def inverse(weight: Array) -> Array:
    """1 / weight, and 0 where it is 0.

    A product with it, for XLA turns some divisions by a scalar into that product and
    others not, which depends on the number of devices and shows in the last bit.
    """
    return jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)
