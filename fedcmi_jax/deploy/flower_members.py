"""Which nodes of Flower are which clients."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedcmi_jax.deploy import flower_records as records
from fedcmi_jax.deploy.session import Session

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

LOG = logging.getLogger("flwr")
"""Flower's own logger: its lines reach whoever watches the run."""

POLL_SECONDS = 1.0
"""Between looks at which nodes there are, while clients are waited for."""


class Members:
    """Which node is which client.

    A node that is new is asked who it is, and waited for once, for as long as the join
    timeout: one that lets it pass is set aside, asked again, and a client whenever it
    answers, but no round waits for it.

    Attributes:
      nodes: Client id -> node id.
    """

    def __init__(self, grid: "Grid", session: Session, timeout: float):
        """Knows nobody yet.

        Args:
          grid: Flower's way to the nodes.
          session: The server's.
          timeout: Seconds that nodes have to join.
        """
        self._grid, self._session, self._timeout = grid, session, timeout
        self.nodes: dict[int, int] = {}
        self._asked: dict[str, tuple[int, float]] = {}  # message id -> node, since when
        self._refused: set[int] = set()
        self._silent: set[int] = set()

    def gather(self, least: int) -> None:
        """Waits until all N clients have joined.

        Args:
          least: Clients that are enough when the join timeout is over; 0: all N.

        Raises:
          ValueError: Too few of them joined in time.
        """
        count = self._session.plan.clients
        self._wait(lambda: len(self.nodes) == count)
        if len(self.nodes) < (least or count):
            missing = sorted(set(range(count)) - set(self.nodes))
            raise ValueError(
                f"join-timeout: after {self._timeout:g} s clients {missing} "
                "have not joined; start their SuperNodes, or give least-clients"
            )

    def ready(self, least: int) -> None:
        """Waits before a round until enough are there, and for who is new.

        Args:
          least: Clients without whom there is no round.

        Raises:
          ValueError: Fewer of them are there after the join timeout.
        """
        self._wait(lambda: len(self.nodes) >= least and not self._awaited())
        if len(self.nodes) < least:
            raise ValueError(
                f"join-timeout: after {self._timeout:g} s {len(self.nodes)} clients "
                f"are there, and a round needs {least}; start their SuperNodes, then "
                "run it again with the same output: it goes on"
            )

    def _wait(self, is_over: Callable[[], bool]) -> None:
        """Looks again and again, until it is over or the join timeout has passed."""
        end = time.monotonic() + self._timeout
        self.look()
        while not is_over() and (left := end - time.monotonic()) > 0:
            time.sleep(min(POLL_SECONDS, left))
            self.look()

    def _awaited(self) -> set[int]:
        """Nodes that have been asked, and may still answer in time."""
        return {node for node, _ in self._asked.values()} - self._silent

    def look(self) -> None:
        """Forgets who is gone, asks who is new, and hears who has answered."""
        from flwr.app import Message

        now, online = time.monotonic(), set(self._grid.get_node_ids())
        self._refused &= online
        self.nodes = {id: node for id, node in self.nodes.items() if node in online}
        for message, (node, since) in list(self._asked.items()):
            if node not in online:
                del self._asked[message]
            elif now - since >= self._timeout:
                del self._asked[message]
                self._silent.add(node)
        known = self._refused | {node for node, _ in self._asked.values()}
        new = sorted(online - set(self.nodes.values()) - known)
        if new:
            asked = [Message(records.nothing(), node, "query.join") for node in new]
            sent = set(self._grid.push_messages(asked))
            ids = [message.metadata.message_id for message in asked]
            pairs = zip(ids, new, strict=True)
            self._asked |= {id: (node, now) for id, node in pairs if id in sent}
        if self._asked:
            for reply in self._grid.pull_messages(list(self._asked)):
                node, _ = self._asked.pop(reply.metadata.reply_to_message_id)
                self._hear(node, reply)

    def _hear(self, node: int, reply: "Message") -> None:
        """What a node said: who it is, or what makes it nobody."""
        try:
            if reply.has_error():
                raise ValueError(f"a client that cannot join: {reason(reply)}")
            id = self._session.join(records.card(reply.content), taken=self.nodes)
        except ValueError as error:
            self._refused.add(node)
            LOG.warning("refused: %s", error)
        else:
            self._silent.discard(node)
            self.nodes[id] = node
            LOG.info("client %s joined", id)

    def settle(self, timeout: float) -> None:
        """Tells every client what was accepted of it last."""
        from flwr.app import ArrayRecord, Message

        session = self._session
        asked = []
        for id, node in sorted(self.nodes.items()):
            last = int(session.accepted[id])
            content = records.of_order(ArrayRecord(), session.run, last)
            asked.append(Message(content, node, "query.settle"))
        heard = {
            reply.metadata.src_node_id
            for reply in self._grid.send_and_receive(asked, timeout=timeout)
            if not reply.has_error()
        }
        for id, node in sorted(self.nodes.items()):
            if node not in heard:
                LOG.warning("client %s has not heard of the last round", id)


def reason(reply: "Message") -> str:
    """Why a message came back without an answer, in one line."""
    return " ".join(str(reply.error.reason or reply.error.code).split())
