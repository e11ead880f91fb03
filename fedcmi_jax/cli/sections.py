"""Arguments that decide which other flags there are: presets and names of sections."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from fedcmi_jax import data
from fedcmi_jax.experiment import plugins
from fedcmi_jax.experiment.config import REGISTRIES, Config, lookup, section
from fedcmi_jax.experiment.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class _Named:
    name: str


_Names = dataclasses.make_dataclass("_Names", [(kind, _Named) for kind in REGISTRIES])


def load_plugins(args: Sequence[str]) -> None:
    """Imports what ``--import`` names, and installed plugins, before flags are known.

    Args:
      args: Arguments of a command; nothing is taken out.

    Raises:
      ValueError: A module cannot be imported, or the flag is there twice.
    """
    if sum(text.partition("=")[0] == "--import" for text in args) > 1:
        raise ValueError("--import: is there twice; give --import=one,other")
    names: list[str] = []
    for text, following in itertools.pairwise([*args, ""]):
        flag, equals, value = text.partition("=")
        if flag == "--import":
            names += filter(None, (value if equals else following).split(","))
    plugins.load(names)


def take_preset(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes the preset, which comes first, out of arguments.

    Returns:
      The preset's name, None if there is none, and the other arguments.

    Raises:
      ValueError: There is no such preset.

    Example:
      >>> take_preset(["noisy_digits", "--rounds=3"])
      ('noisy-digits', ['--rounds=3'])
    """
    if not args or args[0].startswith("-"):
        return None, list(args)
    return lookup("preset", args[0], PRESETS), list(args[1:])


def take_names(base: Config, args: Sequence[str]) -> tuple[Config, list[str]]:
    """Takes the flags out that name sections, such as --method.name.

    Args:
      base: The configuration before flags.
      args: All flags.

    Returns:
      ``base`` with sections of these names; one whose name changes has its own
      defaults. And the other flags.

    Raises:
      ValueError: There is no such name.

    Example:
      >>> config, rest = take_names(Config(), ["--method.name=fedprox", "--seed=3"])
      >>> config.method, rest
      (FedproxMethod(name='fedprox', mu=0.01), ['--seed=3'])
    """
    names = {kind: getattr(base, kind).name for kind in REGISTRIES}
    given, rest = tyro.cli(
        _Names,
        default=_Names(**{kind: _Named(name) for kind, name in names.items()}),
        args=args,
        return_unknown_args=True,
        add_help=False,
    )
    changed = {}
    for kind, name in names.items():
        chosen = lookup(f"{kind}.name", getattr(given, kind).name, REGISTRIES[kind])
        if chosen != name:
            changed[kind] = section(kind, chosen)()
    return dataclasses.replace(base, **changed), rest


def dataset_options(name: str) -> tuple[str, Any]:
    """The options of a data set, without its name among them.

    Returns:
      The name as registered, and its section of a configuration.

    Raises:
      ValueError: There is no such data set.

    Example:
      >>> name, options = dataset_options("noisy-digits")
      >>> name, options.name
      ('noisy_digits', 'noisy_digits')
    """
    if not name or name.startswith("-"):
        raise ValueError(
            f"data prepare: name the data set first; choose from {list(data.REGISTRY)}"
        )
    name = lookup("data set", name, data.REGISTRY)
    named = section("dataset", name)
    hidden = (
        "name",
        Annotated[str, tyro.conf.Suppress],
        dataclasses.field(default=name),
    )
    options = dataclasses.make_dataclass(
        named.__name__,
        [hidden],
        bases=(named,),
        frozen=True,
        namespace={"__doc__": named.__doc__},
    )
    return name, options()
