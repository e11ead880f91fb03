"""Known compiler defects of jaxlib's versions, and the flag against the worst of them.

jaxlib 0.10.2 computes wrong numbers on CPU for some reductions that it fuses with small
products, and crashes on some of arrays with seven axes or more. XLA reads its flags
when JAX first touches a device, so the flag against both has to be in the environment
by then: the command line puts it there, a script calls ``guard()`` first. The library
itself changes no flags; ``build_algorithm`` warns where the flag lacks.
"""

import os
import pathlib
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import jax

JAXLIB = "0.10.2"
"""The one version that gets the flag: versions without it abort on an unknown flag."""

OPTION = "xla_cpu_experimental_ynn_fusion_type"
"""XLA's choice of what its CPU backend hands to the YNNPACK library."""

FLAG = f"--{OPTION}=-reduce"
"""All that it hands over by default, except reductions."""

TOLERANCE = 1e-4
"""Largest relative error that ``check`` calls right: float32 sums of 3 terms are within
1e-6, the defect is of the order of 1."""


class WrongNumbersWarning(RuntimeWarning):
    """The installed compiler is known to compute wrong numbers as it is run."""


class Pitfall(NamedTuple):
    """A known defect of some versions of jaxlib.

    Attributes:
      first: First version that has it.
      last: Last version that has it, inclusive.
      backend: Where: ``cpu``, ``gpu``, or ``any``.
      what: One line.
      report: Public report.
      remedy: What to do, in one line.
      guarded: Whether ``FLAG`` avoids it.
    """

    first: str
    last: str
    backend: str
    what: str
    report: str
    remedy: str
    guarded: bool = False


PITFALLS = (
    Pitfall(
        first=JAXLIB,
        last=JAXLIB,
        backend="cpu",
        what="wrong sums where a reduction is fused with a small product",
        report="jax-ml/jax#39103",
        remedy=f"XLA_FLAGS={FLAG} (the command line sets it; scripts: backend.guard())",
        guarded=True,
    ),
    Pitfall(
        first=JAXLIB,
        last=JAXLIB,
        backend="cpu",
        what="crash in reductions of arrays with 7 axes or more",
        report="jax-ml/jax#40412",
        remedy=f"XLA_FLAGS={FLAG}, as above",
        guarded=True,
    ),
    Pitfall(
        first="0.11.0",
        last="0.11.0",
        backend="cpu",
        what="crash or hang in reductions of arrays with 7 axes or more",
        report="jax-ml/jax#39257",
        remedy="a later jaxlib, or fewer axes",
    ),
    Pitfall(
        first="0.11.0",
        last="0.11.1",
        backend="gpu",
        what="wrong values outside jit on CUDA 13 (reported on an RTX A6000)",
        report="jax-ml/jax#40633",
        remedy="another jaxlib; compare a run with one on CPU",
    ),
    Pitfall(
        first="0.10.0",
        last="0.10.1",
        backend="cpu",
        what="another defect of the CPU compiler",
        report="jax-ml/jax#39264",
        remedy=f"jaxlib {JAXLIB}, which has a flag against its own",
    ),
    Pitfall(
        first="0.5.3",
        last="0.8.1",
        backend="any",
        what="wrong gathers from arrays that a compiled function closes over",
        report="jax-ml/jax#33479",
        remedy="jaxlib 0.8.2 or later, or pass such arrays as arguments",
    ),
)
"""What is publicly reported and would change a user's numbers."""


def pitfalls(jaxlib: str) -> tuple[Pitfall, ...]:
    """The known defects of a version of jaxlib.

    Example:
      >>> [pitfall.report for pitfall in pitfalls("0.10.1")]
      ['jax-ml/jax#39264']
    """
    numbers = _numbers(jaxlib)
    return tuple(
        p for p in PITFALLS if _numbers(p.first) <= numbers <= _numbers(p.last)
    )


def needs_flag(jaxlib: str, platforms: str = "") -> bool:
    """Whether that version may compute wrong numbers there without the flag.

    Args:
      jaxlib: Its version.
      platforms: ``JAX_PLATFORMS``, comma-separated; empty: JAX chooses, perhaps CPU.

    Example:
      >>> needs_flag("0.10.2"), needs_flag("0.10.2", "cuda"), needs_flag("0.11.0")
      (True, False, False)
    """
    names = [name.strip() for name in platforms.split(",") if name.strip()]
    return jaxlib == JAXLIB and (not names or "cpu" in names)


def is_guarded(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``XLA_FLAGS`` speaks of the option at all; then it is the user's choice.

    Example:
      >>> is_guarded({"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type="})
      True
    """
    return OPTION in _flags(environ)


def guard(environ: MutableMapping[str, str] = os.environ) -> None:
    """Sets the flag where it is needed and ``XLA_FLAGS`` does not speak of it.

    For the top of a script, before anything touches a device. Later, it has no effect
    but a warning. Everything else in ``XLA_FLAGS`` stays.

    Args:
      environ: The environment to change.

    Example:
      >>> environ = {"JAX_PLATFORMS": "cuda", "XLA_FLAGS": "--xla_dump_to=dump"}
      >>> guard(environ)
      >>> environ["XLA_FLAGS"]
      '--xla_dump_to=dump'
    """
    platforms = environ.get("JAX_PLATFORMS", "")
    if not needs_flag(version("jaxlib"), platforms) or is_guarded(environ):
        return
    if environ is os.environ and has_started():
        warn_if_unguarded()
        return
    environ["XLA_FLAGS"] = f"{_flags(environ)} {FLAG}".strip()


def unguarded(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """A copy without our flag: for programs that run on other versions of jaxlib.

    Example:
      >>> unguarded({"HOME": "/", "XLA_FLAGS": FLAG})
      {'HOME': '/'}
    """
    copy = dict(environ)
    flags = copy.pop("XLA_FLAGS", "")
    if FLAG in flags.split():
        flags = " ".join(flag for flag in flags.split() if flag != FLAG)
    return copy | {"XLA_FLAGS": flags} if flags else copy


def warn_if_unguarded() -> None:
    """Warns, once per process, where the numbers of this process may be wrong."""
    if version("jaxlib") != JAXLIB or is_guarded():
        return
    import jax

    if jax.default_backend() == "cpu":
        warnings.warn(
            f"jaxlib {JAXLIB} computes wrong numbers on CPU (jax-ml/jax#39103); call "
            "fedcmi_jax.backend.guard() before anything uses a device, or set "
            f"XLA_FLAGS={FLAG}",
            WrongNumbersWarning,
            stacklevel=1,  # always the same place, so that Python shows it once
        )


def find_devices() -> "list[jax.Device]":
    """The devices of this process and all others; starts JAX if nothing has.

    Raises:
      ValueError: JAX finds none, as for JAX_PLATFORMS=cuda where CUDA's plugin lacks.

    Example:
      >>> len(find_devices()) > 0
      True
    """
    import jax

    try:
        return jax.devices()
    # JAX 0.10 fails an assertion, without a word, if no platform it knows is allowed.
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()) or "no device"
        platforms = os.environ.get("JAX_PLATFORMS") or "unset"
        raise ValueError(
            f"JAX_PLATFORMS: {platforms}: JAX cannot start ({reason}); install what "
            "that platform needs, or unset JAX_PLATFORMS"
        ) from None


def check() -> float:
    """Runs the reproducer of jax-ml/jax#39103 as this process is set up.

    Returns:
      The largest relative error of 32,769 sums; above ``TOLERANCE`` they are wrong.

    Example:
      >>> check() < TOLERANCE
      True
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    rows = np.random.default_rng(0).normal(size=(32_769, 3))

    @jax.jit
    def squares(rows: jax.Array) -> jax.Array:
        return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(rows)

    right = (rows.astype(np.float32).astype(np.float64) ** 2).sum(axis=1)
    computed = np.asarray(squares(jnp.asarray(rows, jnp.float32)))
    return float(np.max(np.abs(computed - right) / right))


def _flags(environ: Mapping[str, str]) -> str:
    """The flags of ``XLA_FLAGS``, which may also name a file that holds them."""
    text = environ.get("XLA_FLAGS", "").strip()
    if text and not text.startswith("-") and pathlib.Path(text).is_file():
        return pathlib.Path(text).read_text().strip()
    return text


def _numbers(version: str) -> tuple[int, ...]:
    """``0.10.2`` -> (0, 10, 2); whatever follows the numbers is left out."""
    release = version.split("+")[0].split(".dev")[0].split(".")[:3]
    return tuple(int(part) for part in release if part.isdecimal())


def has_started() -> bool:
    """Whether JAX has touched a device, after which it takes no more settings."""
    if "jax" not in sys.modules:
        return False
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()
