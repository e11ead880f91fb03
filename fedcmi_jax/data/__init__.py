"""Data sets by name; each is a factory with keyword options that returns a Dataset."""

import inspect
from collections.abc import Callable, Iterable

from fedcmi_jax.data.array_files import npz as npz
from fedcmi_jax.data.arrays import from_arrays as from_arrays
from fedcmi_jax.data.av_mnist import av_mnist as av_mnist
from fedcmi_jax.data.ave import ave as ave
from fedcmi_jax.data.base import Dataset as Dataset
from fedcmi_jax.data.base import Split as Split
from fedcmi_jax.data.base import check_dataset as check_dataset
from fedcmi_jax.data.cg_digits import cg_digits as cg_digits
from fedcmi_jax.data.cg_mnist import cg_mnist as cg_mnist
from fedcmi_jax.data.cremad import cremad as cremad
from fedcmi_jax.data.crisismmd import crisismmd as crisismmd
from fedcmi_jax.data.hapt import hapt as hapt
from fedcmi_jax.data.manifest import manifest as manifest
from fedcmi_jax.data.modelnet40 import modelnet40 as modelnet40
from fedcmi_jax.data.noisy_digits import noisy_digits as noisy_digits
from fedcmi_jax.data.noisy_mnist import noisy_mnist as noisy_mnist
from fedcmi_jax.data.synthetic import synthetic as synthetic
from fedcmi_jax.data.tfds import tfds as tfds
from fedcmi_jax.samples import PathOption as PathOption

REGISTRY: dict[str, Callable[..., Dataset]] = {
    "noisy_digits": noisy_digits,
    "cg_digits": cg_digits,
    "synthetic": synthetic,
    "noisy_mnist": noisy_mnist,
    "cg_mnist": cg_mnist,
    "av_mnist": av_mnist,
    "hapt": hapt,
    "cremad": cremad,
    "ave": ave,
    "crisismmd": crisismmd,
    "modelnet40": modelnet40,
    "npz": npz,
    "manifest": manifest,
}
"""Name -> factory."""


def load(name: str, **options: object) -> Dataset:
    """Builds a registered data set and checks it.

    Args:
      name: Key of REGISTRY.
      **options: Keyword options of that factory.

    Returns:
      The data set, which has passed check_dataset.

    Raises:
      ValueError: name or an option is unknown, an option's value is refused, or the
        data are not sound.

    Example:
      >>> load("synthetic", train_samples=100).train.size
      100
    """
    if name not in REGISTRY:
        raise ValueError(
            f"name={name!r}: no such data set; use one of {_list(REGISTRY)}"
        )
    factory = REGISTRY[name]
    known = inspect.signature(factory).parameters
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"{option}={value!r}: no such option of data set {name!r}; use one of "
                f"{_list(known)}"
            )
    return check_dataset(factory(**options))


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
