"""A Flower project of a configuration: what ``flwr run`` takes."""

import dataclasses
from pathlib import Path

from fedcmi_jax._version import __version__
from fedcmi_jax.deploy.client import shapes_of
from fedcmi_jax.deploy.flower_server import Options
from fedcmi_jax.deploy.plan import Plan, bound_algorithm, plan_of, to_json
from fedcmi_jax.deploy.support import check, check_config
from fedcmi_jax.experiment.config import Config
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.files import replace, write_json
from fedcmi_jax.experiment.run_folder import check_free

PACKAGE = "fedcmi_app"
"""The project's Python package."""

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

# Nothing is listed that could be installed when the app runs: server and clients need
# fedcmi_jax[flower] {version} beforehand.
[project]
name = "fedcmi-app"
version = "1.0.0"
description = "{method} on {dataset}, {clients} clients"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["{package}"]

[tool.flwr.app]
publisher = "fedcmi"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

[tool.flwr.app.config]
{options}
"""

README = """\
# {method} on {dataset}, {clients} clients

Server and clients need fedcmi_jax[flower] {version}; the plan is {digest}.
Simulated: `flwr run . local --stream --federation-config 'num-supernodes={clients}'`.
For real: docs/deploy.md of fedcmi_jax; a SuperNode's `--node-config 'partition-id=0'`
says which client it is, `data="FILE.npz"` which samples it has.
"""

IGNORED = """\
# Flower sends all clients what it finds in this folder: results belong elsewhere.
run/
*-run/
"""

APP = '''\
"""The {side} of this deployment."""

from pathlib import Path

from fedcmi_jax.deploy.flower_{side} import {side}_app

app = {side}_app(Path(__file__).parent / "plan.json")
'''


def write_project(config: Config, folder: Path) -> Plan:
    """Writes a Flower project that runs what a configuration describes.

    Args:
      config: The configuration; its data set is loaded once, for its shapes.
      folder: New or empty.

    Returns:
      The plan that the project has.

    Raises:
      ValueError: The folder is taken, or the configuration cannot be deployed.
    """
    check_free(folder)
    check_config(config)
    experiment = build(config, resident=False)
    clients = experiment.federation.num_clients
    plan = plan_of(experiment.config, experiment.dataset, clients)
    setup = bound_algorithm(plan).setup
    check(plan, setup, shapes_of(plan, setup))
    folder = folder.absolute()
    usual = Options(output=str(folder.with_name(f"{folder.name}-run")))
    options = "\n".join(
        f"{name.replace('_', '-')} = {_toml(value)}"
        for name, value in dataclasses.asdict(usual).items()
    )
    words = {
        "method": config.method.name,
        "dataset": config.dataset.name,
        "clients": clients,
        "version": __version__,
        "digest": plan.digest[:12],
        "package": PACKAGE,
        "options": options,
    }
    package = folder / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    texts = {
        folder / "pyproject.toml": PYPROJECT.format(**words),
        folder / "README.md": README.format(**words),
        folder / ".gitignore": IGNORED,
        package / "__init__.py": '"""An app of Flower."""\n',
        package / "client_app.py": APP.format(side="client"),
        package / "server_app.py": APP.format(side="server"),
    }
    for path, text in texts.items():
        replace(path, text.encode())
    write_json(package / "plan.json", to_json(plan))
    return plan


def _toml(value: str | float | bool) -> str:
    """A value in TOML.

    Example:
      >>> _toml(True), _toml(1.5), _toml("a b")
      ('true', '1.5', '"a b"')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)
