"""Trees as named arrays, and back, with everything checked that came from elsewhere."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.experiment.arrays import named_leaves
from fedcmi_jax.types import Mean, PyTree, Sums
from fedcmi_jax.uploads import map_uploads


def as_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """Name -> host array of every leaf, in tree order.

    Example:
      >>> as_arrays({"w": jnp.zeros(2)})
      {"['w']": array([0., 0.], dtype=float32)}
    """
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


def as_tree(
    arrays: Mapping[str, np.ndarray], like: PyTree, finite: bool = True
) -> PyTree:
    """The inverse of ``as_arrays``; takes no array that differs from what is expected.

    Args:
      arrays: Name -> array.
      like: A tree of that structure, of arrays or ``jax.ShapeDtypeStruct``.
      finite: Whether every number must be finite.

    Raises:
      ValueError: An array is missing, unknown, of another shape or dtype, or has an
        element that must be finite and is not; names the array.

    Example:
      >>> as_tree({"['w']": np.full(2, np.inf)}, {"w": np.zeros(2)})
      Traceback (most recent call last):
      ValueError: array ['w'] has an element that is not finite
    """
    expected = named_leaves(like)
    for name in [*(n for n in expected if n not in arrays), *arrays]:
        if name not in expected or name not in arrays:
            what = "is missing" if name in expected else "is none of those expected"
            raise ValueError(f"array {name} {what}")
    for name, leaf in expected.items():
        found, wanted = (f"{x.dtype}{list(x.shape)}" for x in (arrays[name], leaf))
        if found != wanted:
            raise ValueError(f"array {name} is {found}, expected {wanted}")
        checked = finite and jnp.issubdtype(leaf.dtype, jnp.floating)
        if checked and not np.isfinite(arrays[name]).all():
            raise ValueError(f"array {name} has an element that is not finite")
    leaves = [arrays[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_weights(upload: PyTree) -> None:
    """Refuses an upload with a negative weight: a mean would leave its values' range.

    Args:
      upload: Of one client, on the host.

    Raises:
      ValueError: A weight is negative.

    Example:
      >>> check_weights({"sizes": Mean(np.float32(3), np.float32(-1))})
      Traceback (most recent call last):
      ValueError: upload: the weight of a mean is -1.0; give none below 0
    """

    def checked(leaf: Mean) -> Mean:
        for weight in map(np.asarray, jax.tree.leaves(leaf.weight)):
            if (weight < 0).any():
                raise ValueError(
                    f"upload: the weight of a mean is {weight.min()}; give none below 0"
                )
        return leaf

    map_uploads(upload, checked)


def as_metrics(sums: Sums) -> dict[str, list[float]]:
    """Name -> the metric's sums, then their weights, as plain numbers.

    Example:
      >>> as_metrics({"loss_task": (jnp.array(3.0), jnp.array(2.0))})
      {'loss_task': [3.0, 2.0]}
    """
    return {
        name: [float(x) for part in pair for x in np.ravel(part)]
        for name, pair in sums.items()
    }


def as_sums(metrics: Mapping[str, Any], like: Sums) -> Sums:
    """The inverse of ``as_metrics``.

    Args:
      metrics: Name -> numbers.
      like: Sums of that structure, of arrays or ``jax.ShapeDtypeStruct``.

    Raises:
      ValueError: A metric is missing, unknown, of another length, or not finite.

    Example:
      >>> pair = jax.ShapeDtypeStruct((), jnp.float32)
      >>> as_sums({"loss_task": [3.0, 2.0]}, {"loss_task": (pair, pair)})
      {'loss_task': (array(3., dtype=float32), array(2., dtype=float32))}
    """
    if set(metrics) != set(like):
        raise ValueError(f"metrics are {sorted(metrics)}, expected {sorted(like)}")
    sums: dict[str, Any] = {}
    for name, (total, weight) in like.items():
        numbers = np.asarray(metrics[name], np.float32).ravel()
        sizes = [int(np.prod(x.shape)) for x in (total, weight)]
        if len(numbers) != sum(sizes) or not np.isfinite(numbers).all():
            raise ValueError(f"metric {name} is no list of {sum(sizes)} finite numbers")
        first, second = np.split(numbers, sizes[:1])
        sums[name] = (first.reshape(total.shape), second.reshape(weight.shape))
    return sums
