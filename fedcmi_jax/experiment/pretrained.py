"""Saved or pretrained parameters, of another run or of a file, for a model."""

import pathlib
import re
from collections.abc import Iterable

import jax
import numpy as np

from fedcmi_jax.blocks import by_path
from fedcmi_jax.choices import begins, matching
from fedcmi_jax.data.array_files import nested
from fedcmi_jax.data.raw.npy import read_npz
from fedcmi_jax.data.raw.safetensors import SUFFIX, read_safetensors
from fedcmi_jax.experiment.initial import KINDS, block_of
from fedcmi_jax.experiment.runs import Round, load_run
from fedcmi_jax.types import Model, Params, PyTree, Start

_ROUND = re.compile(r"(.*)@(last|best|\d+)")


def init_from(
    model: Model, source: str | pathlib.Path, blocks: Iterable[str] | str | None = None
) -> Start:
    """Saved or pretrained arrays for some blocks of a model.

    Args:
      model: What is to start from them.
      source: A run's folder, with ``@best`` or ``@12`` at its end for the model of its
        best round or of round 12, not of the last one; or an .npz or .safetensors file
        whose keys are paths like ``encoder/clean/dense0/kernel``, after ``params/`` and
        ``batch_stats/`` as ``fedcmi export`` writes them, or alone. ``:encoder/clean``
        at its end is one of blocks.
      blocks: Patterns of what to take (``choices.matching``); None: all that is there,
        which must then fit.

    Returns:
      The arrays, for ``algorithm.init(key, federation, start)``; blocks that are not
      among them start as they are drawn.

    Raises:
      ValueError: There is no such file or run, a pattern names nothing in it, or an
        array is not one of the model's, has another shape, is not of finite numbers, or
        is missing from a block that the source has. Names source and array.

    Example:
      >>> import fedcmi_jax as fc
      >>> shapes = {"a": (4,), "b": (4,)}
      >>> encoders = {m: fc.models.mlp(features=8) for m in shapes}
      >>> model = fc.models.classifier(encoders, shapes, 3)
      >>> init_from(model, "no_such_file.npz")
      Traceback (most recent call last):
      ValueError: init_from: there is no file or folder no_such_file.npz
    """
    path, round, block = _parsed(str(source))
    chosen = [blocks] if isinstance(blocks, str) else list(blocks or ())
    chosen += [block] if block else []
    if path.is_file() and round != "last":
        raise ValueError(
            f"init_from: {path}@{round}: a file has no rounds; leave @{round} out"
        )
    found = _of_run(path, round) if path.is_dir() else _of_file(path)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return Start(*_checked(f"init_from: {path}", found, shapes, chosen))


def _parsed(source: str) -> tuple[pathlib.Path, Round, str]:
    """Path, round and block of ``PATH[@ROUND][:BLOCK]``; a path that exists is one."""
    block, round = "", "last"
    if not pathlib.Path(source).exists() and ":" in source:
        source, block = source.rsplit(":", 1)
        if not block:
            raise ValueError(
                f"init_from: {source}: names no block; add one after the colon, or "
                "leave the colon out"
            )
    if not pathlib.Path(source).exists() and (found := _ROUND.fullmatch(source)):
        source, round = found.groups()
    path = pathlib.Path(source)
    if not source or not path.exists():
        raise ValueError(f"init_from: there is no file or folder {source}")
    return path, int(round) if round.isdecimal() else round, block  # type: ignore[return-value]


def _of_run(folder: pathlib.Path, round: Round) -> dict[str, dict[str, np.ndarray]]:
    trees = load_run(folder).params(round)
    return {kind: by_path(tree) for kind, tree in zip(KINDS, trees, strict=True)}


def _of_file(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """Parameters and statistics of a file, by their paths in a model."""
    found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
    read = read_safetensors if path.suffix == SUFFIX else read_npz
    for key, x in read(path).items():
        kind, _, rest = key.partition("/")
        if kind in found:
            found[kind][rest] = x
        else:
            found["params"][key] = x
    return found


def _checked(
    where: str,
    found: dict[str, dict[str, np.ndarray]],
    shapes: tuple[Params, Params],
    patterns: list[str],
) -> tuple[Params, Params]:
    """The arrays as trees; names, shapes and numbers are those of the model."""
    paths = [*found["params"], *found["batch_stats"]]
    if not paths:
        raise ValueError(f"{where}: holds no arrays")
    named = matching(where, patterns, paths) if patterns else set(paths)
    blocks = {block_of(path) for path in named}
    trees = []
    for kind, tree in zip(KINDS, shapes, strict=True):
        like, given = shapes_by_path(tree), found[kind]
        taken = {path: x for path, x in given.items() if path in named}
        for path, x in taken.items():
            _check_array(where, f"{kind}/{path}", x, like.get(path))
        for path in like:
            wanted = not patterns or any(begins(path, p) for p in patterns)
            if wanted and block_of(path) in blocks and path not in taken:
                raise ValueError(
                    f"{where}: lacks {kind}/{path}, which the model has beside what is "
                    "there; add it, or name the layers to take"
                )
        typed = {path: x.astype(like[path].dtype) for path, x in taken.items()}
        trees.append(nested(typed, where))
    return trees[0], trees[1]


def _check_array(
    where: str, name: str, x: np.ndarray, like: jax.ShapeDtypeStruct | None
) -> None:
    if like is None:
        raise ValueError(
            f"{where}: the model has no {name}; name the blocks to take, such as "
            "FILE.npz:encoder"
        )
    if x.shape != like.shape:
        raise ValueError(
            f"{where}: {name} has shape {x.shape}, the model's has {like.shape}; give "
            "the model the sizes of the source, or leave the block out"
        )
    if not (np.issubdtype(x.dtype, np.number) and np.isfinite(x).all()):
        raise ValueError(f"{where}: {name} holds what is no finite number")


def shapes_by_path(tree: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a tree's leaves, ``path/to/leaf`` -> shape and dtype."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
