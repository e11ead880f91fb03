"""What one client sends: trained, perhaps attacking, judged, bounded."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax import (
    aggregate,
    attacks,
    compression,
    guard,
    privacy,
    stacks,
    systems,
    uploads,
)
from fedcmi_jax.aggregate import Sent
from fedcmi_jax.blocks import drop_frozen, scale_blocks, statistics_weights
from fedcmi_jax.clients import ClientUpdate
from fedcmi_jax.cohort import named_key
from fedcmi_jax.local import LocalResult, select, train_client
from fedcmi_jax.methods.base import is_set, personal_blocks
from fedcmi_jax.methods.seen import Client, Kept
from fedcmi_jax.server import Seen, client_view
from fedcmi_jax.setup import Setup
from fedcmi_jax.types import Array, FederationState, Params, PyTree, Sums


class Judgement(NamedTuple):
    """What the server found about one client's update.

    Attributes:
      accepted: bool, whether it counts.
      set_aside: bool, whether it does not because the guard found it too long.
      norms: [2] float32, ``guard.update_norms``, before any clipping.
      bounded: [3] float32, norms that ``aggregators.norm_bound`` compares with its
        bounds, of parameters, statistics and uploads; () without it.
    """

    accepted: Array
    set_aside: Array
    norms: Array
    bounded: PyTree


class Report(NamedTuple):
    """What the round keeps of every client by itself.

    Attributes:
      judgement: The client's.
      steps: int32, its local steps.
      loss: float32, mean task loss over its steps' samples, in nats.
      sent: ``stacks.as_vectors`` of what it sent, where updates are stacked; else ().
      outcome: ``systems.Outcome``; () without.
    """

    judgement: Judgement
    steps: Array
    loss: Array
    sent: PyTree
    outcome: PyTree = ()


class Trained(NamedTuple):
    """What one client's local training leaves, before anybody judges it.

    Attributes:
      sent: What it sends.
      sound: bool, whether it is somebody whose parameters, upload and memory are finite
        and whose weight is finite and not negative.
      kept: What is kept of it if its update is accepted.
      metrics: Sums over its steps.
      outcome: ``systems.Outcome``; () without.
    """

    sent: Sent
    sound: Array
    kept: Kept
    metrics: Sums
    outcome: PyTree = ()


Trainer = Callable[[Setup, Seen, Array, Array, Kept, Array], Trained]
"""Arguments as of ``trained``. A federation whose clients are elsewhere has another: it
looks up what they sent (``deploy``)."""


def trained(
    setup: Setup,
    seen: Seen,
    id: Array,
    participation: Array,
    kept: Kept,
    max_batches: Array,
) -> Trained:
    """One client's local training, and what it sends.

    Args:
      setup: The algorithm's.
      seen: What all clients see.
      id: int32; N is nobody, who sends zeros.
      participation: [M] float32, modalities that it trains with.
      kept: What is kept of it between rounds.
      max_batches: int32, batches that a pass over its data may take.
    """
    method, state = setup.method, seen.state
    view = client_view(setup, seen, id, participation, kept, max_batches)
    client, key, is_real = view
    client = _with_labels(setup, seen, client, id)
    owned, frozen = averaged_blocks(setup, participation), setup.model.frozen
    outcome, limit = _outcome(setup, seen, id, client, owned, key)
    if limit is not None:
        client = client._replace(num_steps=jnp.minimum(client.num_steps, limit))
    result = train_client(method, setup.local, client, key, limit)
    delta = jax.tree.map(jnp.subtract, result.params, state.params)
    stats = jax.tree.map(jnp.subtract, result.batch_stats, state.batch_stats)
    sent = Sent(
        delta=drop_frozen(frozen.params, delta),
        stats=drop_frozen(frozen.batch_stats, stats),
        owned=owned,
        weight=_weight(setup, result),
        num_examples=client.data.num_examples,
        steps=client.num_steps,
        upload=result.upload,
    )
    residual = kept.residual
    if setup.compression is not None:
        small, residual = compression.compressed(
            setup.compression,
            _key(state, "compression", id),
            sent.delta,
            owned,
            residual,
        )
        sent = sent._replace(delta=small)
    checked: PyTree = (result.params, sent.stats, sent.upload, result.memory)
    if setup.compression is not None:
        checked = (checked, sent.delta, residual)
    if setup.attack is not None:
        attack_key = _key(state, "attack", id)
        bad = _attacks(seen, id)
        sent = attacks.changed(setup.attack, attack_key, sent, bad)
        checked = (checked, sent.delta, sent.stats, sent.upload)
    sound = is_real & aggregate.is_weight(sent.weight) & aggregate.all_finite(checked)
    if setup.systems is not None:
        sound &= outcome.returned
    memory = Kept(result.memory, personal_blocks(method, result.params), residual)
    return Trained(sent, sound, memory, result.metrics, outcome)


def _outcome(
    setup: Setup, seen: Seen, id: Array, client: Client, owned: Params, key: Array
) -> tuple[PyTree, Array | None]:
    """What becomes of a client's round, and how many steps it can take in time."""
    if setup.systems is None:
        return (), None
    state, method, local = seen.state, setup.method, setup.local
    upload: PyTree = ()
    if is_set(method, "finish"):
        trains = functools.partial(train_client, method, local, client, key)
        upload = jax.eval_shape(trains).upload
    bytes_down, bytes_up = systems.traffic(
        owned, state.params, state.batch_stats, upload, setup.compression
    )
    speed, bandwidth = (x.at[id].get(mode="clip") for x in seen.speeds)
    total, size = bytes_down + bytes_up, local.batch_size
    limit = systems.most_steps(setup.systems, speed, bandwidth, total, size)
    outcome = systems.outcome(
        setup.systems,
        _key(state, "systems", id),
        client.num_steps,
        limit,
        size / speed,
        total / bandwidth,
    )
    return outcome, limit


def averaged_blocks(setup: Setup, participation: Array) -> Params:
    """Prefix tree of own_{i,b}: 1 for blocks whose mean a client shares in.

    Args:
      setup: The algorithm's.
      participation: [M] float32, modalities that it trains with.
    """
    owned = setup.model.owned(participation)
    return owned | {
        kind: jax.tree.map(jnp.zeros_like, owned[kind])
        for kind in setup.method.personal
    }


def client_update(
    setup: Setup,
    train: Trainer,
    seen: Seen,
    id: Array,
    participation: Array,
    kept: Kept,
    max_batches: Array,
) -> ClientUpdate:
    """One client's round: local training, and what the server makes of it.

    Args:
      setup: The algorithm's.
      train: ``trained``, or what stands in its place.
      seen: What all clients see.
      id: int32; N is nobody, who sends zeros.
      participation: [M] float32, modalities that it trains with.
      kept: What is kept of it between rounds.
      max_batches: int32, batches that a pass over its data may take.

    Returns:
      Its contribution to the round's sums, what is kept of it, and the report: it is
      accepted if its update is finite, its weight finite and not negative, and the
      guard does not find it too long.
    """
    found = train(setup, seen, id, participation, kept, max_batches)
    sent, judgement = judged(setup, seen, found.sent, found.sound, setup.crafts)
    accepted = judgement.accepted
    return ClientUpdate(
        sums=aggregate.client_sums(
            sent.delta,
            sent.stats,
            sent.owned,
            sent.weight,
            sent.num_examples,
            sent.upload,
            found.metrics,
            accepted,
        ),
        memory=select(accepted, found.kept, kept),
        report=Report(
            judgement,
            sent.steps,
            _mean(*found.metrics["loss_task"]),
            stacks.as_vectors(sent) if setup.stacks else (),
            found.outcome,
        ),
    )


def _key(state: FederationState, purpose: str, id: Array) -> Array:
    """A client's key of a round, for one purpose."""
    key = jax.random.fold_in(named_key(state.key, purpose), state.round)
    return jax.random.fold_in(key, id)


def _weight(setup: Setup, result: LocalResult) -> PyTree:
    """Its weight in the mean; where that is private, all weigh the same."""
    if setup.privacy is not None:
        return jnp.ones(())
    return jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), result.weight)


def _mean(total: Array, count: Array) -> Array:
    return total / jnp.maximum(count, 1.0)


def judged(
    setup: Setup, seen: Seen, sent: Sent, accepted: Array, later: bool = False
) -> tuple[Sent, Judgement]:
    """What the server makes of an update: set aside, clipped, bounded, or as it is.

    Args:
      setup: The algorithm's.
      seen: What all clients see.
      sent: What the client sent; arrays or vectors.
      accepted: bool, whether it is somebody who sent numbers.
      later: Leave it as it is: it is not yet what will be judged.
    """
    bound = setup.aggregator.bound
    if later:
        nothing = jnp.zeros(3) if bound else ()
        false = jnp.zeros_like(accepted)
        return sent, Judgement(accepted, false, jnp.zeros(2), nothing)
    norms = guard.update_norms(sent.delta, sent.stats, sent.owned)
    set_aside = accepted & guard.is_beyond(seen.reach, norms, sent.steps)
    longest: float | Array | None = setup.clip_norm
    if setup.privacy is not None:
        longest = privacy.bound(setup.privacy, seen.state.privacy)
    if longest is not None:
        clipped = aggregate.clip_by_norm(sent.delta, sent.owned, longest)
        sent = sent._replace(delta=clipped)
    lengths: PyTree = ()
    if bound is not None:
        sent, lengths = _bounded(sent, seen.state.aggregator)
    return sent, Judgement(accepted & ~set_aside, set_aside, norms, lengths)


def _bounded(sent: Sent, bounds: Array) -> tuple[Sent, Array]:
    """Parameters, statistics and the upload's values, each clipped to its bound."""
    values = uploads.values_of(sent.upload)
    of_stats = statistics_weights(sent.owned, sent.stats)
    own = (
        scale_blocks(sent.owned, sent.delta),
        scale_blocks(of_stats, sent.stats),
        values,
    )
    norms = jnp.stack([guard.l2_norm(tree) for tree in own])
    safe = jnp.where(norms > bounds, norms, 1.0)
    factors = jnp.where(norms > bounds, bounds / safe, 1.0)

    def scaled(i: int, x: Array) -> Array:
        return (factors[i] * x).astype(x.dtype)

    shorter = sent._replace(
        delta=jax.tree.map(lambda x: scaled(0, x), sent.delta),
        stats=jax.tree.map(lambda x: scaled(1, x), sent.stats),
        upload=uploads.map_values(lambda x: scaled(2, x), sent.upload),
    )
    return shorter, norms


def _with_labels(setup: Setup, seen: Seen, client: Client, id: Array) -> Client:
    """The client with the labels that it trains on."""
    attack = setup.attack
    if attack is None or attack.labels is None:
        return client
    federation = client.data.federation
    wrong = attack.labels(federation.labels, setup.model.num_classes)
    labels = jnp.where(_attacks(seen, id), wrong, federation.labels)
    flipped = dataclasses.replace(federation, labels=labels)
    return client._replace(data=dataclasses.replace(client.data, federation=flipped))


def _attacks(seen: Seen, id: Array) -> Array:
    """Whether a client attacks; nobody does not."""
    return seen.attackers.at[id].get(mode="fill", fill_value=False)
