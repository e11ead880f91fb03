"""A session's rounds as a strategy of Flower's Message API."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedcmi_jax.deploy import flower_records as records
from fedcmi_jax.deploy.flower_members import LOG, Members, reason
from fedcmi_jax.deploy.session import Evaluate, Session

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

SHOWN = ("loss_task", "num_examples", "acc")
"""Columns of a metrics line that Flower prints; metrics.jsonl has all."""


def strategy_of(
    session: Session,
    members: Members,
    timeout: float,
    evaluate: Evaluate | None,
    least: int = 1,
) -> "Strategy":
    """The strategy that asks a round's cohort, and hands the session its answers.

    Args:
      session: The server's.
      members: Which node is which client.
      timeout: Seconds that a round waits for its clients.
      evaluate: Tests the global model; None: nobody does.
      least: Clients that must be there for a round to begin.
    """
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy

    class SessionStrategy(Strategy):
        """Which clients a round trains, and what becomes of their answers."""

        def __init__(self) -> None:
            self._asked: dict[int, Message] = {}
            self._lost: dict[int, str] = {}

        def configure_train(
            self,
            server_round: int,
            arrays: ArrayRecord,
            config: ConfigRecord,
            grid: Grid,
        ) -> Iterable[Message]:
            del config, grid
            members.ready(least)
            self._asked, self._lost = {}, {}
            for id in session.cohort():
                if id not in members.nodes:
                    self._lost[id] = "not there"
                    continue
                last = int(session.accepted[id])
                self._asked[id] = Message(
                    records.of_order(arrays, session.run, last),
                    members.nodes[id],
                    "train",
                    ttl=timeout,
                    group_id=str(server_round),
                )
                self._lost[id] = "no answer in time"
            return list(self._asked.values())

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord, MetricRecord]:
            ids = {m.metadata.message_id: id for id, m in self._asked.items()}
            answers, lost = {}, self._lost
            for reply in replies:
                id = ids[reply.metadata.reply_to_message_id]
                if reply.has_error():
                    lost[id] = reason(reply)
                    continue
                try:
                    answers[id] = session.answer(*records.answer(reply.content))
                    lost.pop(id, None)
                except ValueError as error:
                    lost[id] = str(error)
            number = int(session.state.round) + 1
            for id, why in sorted(lost.items()):
                LOG.warning("round %s without client %s: %s", number, id, why)
            record = session.close(answers, lost, evaluate)
            numbers = {name: record[name] for name in SHOWN if name in record}
            return records.array_record(session.received()), MetricRecord(numbers)

        def configure_evaluate(
            self,
            server_round: int,
            arrays: ArrayRecord,
            config: ConfigRecord,
            grid: Grid,
        ) -> Iterable[Message]:
            return []

        def aggregate_evaluate(
            self, server_round: int, replies: Iterable[Message]
        ) -> MetricRecord | None:
            return None

        def summary(self) -> None:
            LOG.info(
                "fedcmi_jax %s: method %s, %s clients, %s a round",
                session.plan.version,
                session.method.name,
                session.plan.clients,
                session.plan.config.clients_per_round,
            )

    return SessionStrategy()
