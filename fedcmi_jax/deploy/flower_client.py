"""A client as an app of Flower: what its messages say, handed to ``site.Site``."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcmi_jax import backend
from fedcmi_jax.deploy import flower_records as records
from fedcmi_jax.deploy.plan import read_plan
from fedcmi_jax.deploy.site import Site
from fedcmi_jax.experiment.programs import keep_programs

if TYPE_CHECKING:
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp


def client_app(plan: Path) -> "ClientApp":
    """Flower's ClientApp of a plan; needs the extra ``flower``.

    A SuperNode's ``--node-config`` says who it is:
      partition-id: The client's number, from 0.
      data: Its .npz file; without one it has its share of the plan's data set.
      folder: Where it keeps what it remembers, a file per run; by default
        ``fedcmi`` in Flower's own folder.
      plan: The digest that the plan must have, if its owner insists on one.

    Args:
      plan: The file of the plan.
    """
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.query("join")
    def join(message: "Message", context: "Context") -> "Message":
        return _replied(message, lambda: records.of_card(_site(plan, context).card()))

    @app.train()
    def train(message: "Message", context: "Context") -> "Message":
        def work() -> "RecordDict":
            arrays, run, accepted = records.order(message.content)
            return records.of_answer(*_site(plan, context).train(arrays, run, accepted))

        return _replied(message, work)

    @app.query("settle")
    def settle(message: "Message", context: "Context") -> "Message":
        def work() -> "RecordDict":
            _, run, accepted = records.order(message.content)
            _site(plan, context).settle(run, accepted)
            return records.nothing()

        return _replied(message, work)

    return app


def _replied(message: "Message", work: Callable[[], "RecordDict"]) -> "Message":
    """The reply to a message; a refusal is one line in it, not a traceback."""
    from flwr.app import Message

    try:
        content = work()
    except (ValueError, OSError) as error:
        content = records.of_refusal(" ".join(str(error).split()))
    return Message(content, reply_to=message)


def _site(plan: Path, context: "Context") -> Site:
    """The client that this node is."""
    config = context.node_config
    id = config.get("partition-id")
    if not isinstance(id, int):
        raise ValueError("partition-id: is missing; give --node-config partition-id=0")
    wanted = config.get("plan")
    folder = Path(str(config.get("folder") or default_folder()))
    data = config.get("data")
    return _opened(plan, id, folder, None if data is None else str(data), wanted)


@functools.lru_cache(maxsize=8)
def _opened(plan: Path, id: int, folder: Path, data: str | None, wanted: Any) -> Site:
    """A client, kept from one message to the next where a process lives so long."""
    backend.guard()
    keep_programs()
    found = read_plan(plan)
    if wanted is not None and wanted != found.digest:
        raise ValueError(
            f"client {id}: its owner wants plan {str(wanted)[:12]}, this one is "
            f"{found.digest[:12]}"
        )
    return Site(found, id, folder, None if data is None else Path(data))


def default_folder() -> Path:
    """Where clients keep their files: ``fedcmi`` in Flower's own folder.

    Example:
      >>> default_folder().name
      'fedcmi'
    """
    home = os.environ.get("FLWR_HOME")
    return (Path(home) if home else Path.home() / ".flwr") / "fedcmi"
