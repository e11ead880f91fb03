"""One client's local training: epochs, batches, and the method's hooks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedcmi_jax.blocks import keep_frozen, keep_unowned, scale_blocks
from fedcmi_jax.federation import ClientData
from fedcmi_jax.methods._samples import task_losses
from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client, LocalUpdate, Step
from fedcmi_jax.models.augment import Augment
from fedcmi_jax.optimizers import Optimizer, clipped, torch_sgd, without_frozen
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params, PyTree, Sums


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains.

    Attributes:
      epochs: Passes over the client's samples per round (E).
      batch_size: Samples per step (B); the last batch of a pass may be smaller.
      learning_rate: Constant, or a function of the round (int32, from 0).
      optimizer: Learning rate -> optax optimizer; its state is fresh in every round.
        None: ``torch_sgd`` with the method's momentum.
      shuffle: New order in every epoch; False: stored order, for reference runs.
      augment: ``(key, batch) -> batch`` in every step, ``models.augment``; None: none.
      clip_grad_norm: Largest l2 norm of a step's gradient, over all parameters that are
        not frozen, as the method passes it on and before weight decay; None: any.

    Raises:
      ValueError: epochs or batch_size is below 1, or clip_grad_norm is not positive.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float | Array | Callable[[Array], Array] = 0.05
    optimizer: Optimizer | None = None
    shuffle: bool = True
    augment: Augment | None = None
    clip_grad_norm: float | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}: {value} is below 1; give at least 1")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise ValueError(
                f"clip_grad_norm: {self.clip_grad_norm} is not positive; try 10, or "
                "None for no clipping"
            )

    def rate(self, round: Array) -> Array:
        """The learning rate of a round, float32."""
        rate = self.learning_rate
        return jnp.asarray(rate(round) if callable(rate) else rate, jnp.float32)


class LocalResult(NamedTuple):
    """What one client's local training leaves.

    Attributes:
      params: Trained parameters.
      batch_stats: Updated BatchNorm statistics.
      upload: The method's upload.
      memory: What the method remembers of the client.
      weight: The client's weight in the mean, ``Method.weight``.
      metrics: Sums over its steps.
    """

    params: Params
    batch_stats: Params
    upload: PyTree
    memory: PyTree
    weight: PyTree
    metrics: Sums


class Carry(NamedTuple):
    """What a local step changes.

    Attributes:
      params: Parameters.
      batch_stats: BatchNorm statistics.
      optimizer: State of the optimizer.
      context: The method's context.
      metrics: Sums over the steps so far.
      done: int32, steps so far.
    """

    params: Params
    batch_stats: Params
    optimizer: PyTree
    context: PyTree
    metrics: Sums
    done: Array


def shuffled_positions(key: Array, data: ClientData) -> Array:
    """[capacity] int32: the client's training samples in random order, padding last.

    The order depends on the key and the client's size only, not on the padding.
    """
    positions = jnp.arange(data.capacity)
    draws = jax.random.bits(key, (data.capacity,)) >> 1
    padding = jnp.uint32(2**32 - 1)
    return jnp.argsort(jnp.where(positions < data.num_examples, draws, padding))


def task_loss(model: Model, outputs: Outputs, batch: Batch) -> tuple[Array, Array]:
    """Sum over real samples of their loss (-log softmax(z)[y], in nats), their number.

    The loss is ``Model.loss``, if it has one.
    """
    losses = task_losses(model, outputs.logits, batch.labels)
    return (losses * batch.valid).sum(), batch.valid.sum()


MODEL_STREAM = 2**31 - 1
"""Folded into a step's key for the model: no split of that key goes so far."""


def with_key(model: Model, batch: Batch, key: Array) -> Batch:
    """The batch of a step, with a key folded out of the step's if the model draws."""
    if not model.needs_key:
        return batch
    return batch._replace(key=jax.random.fold_in(key, MODEL_STREAM))


def select(keep: Array, new: PyTree, old: PyTree) -> PyTree:
    """``new`` where the scalar ``keep`` is true, else ``old``.

    A leaf that is the same object in both is left alone: no copy of what a step does
    not touch.
    """
    return jax.tree.map(lambda n, o: o if n is o else jnp.where(keep, n, o), new, old)


def num_steps(local: LocalTraining, num_examples: Array) -> Array:
    """Optimizer steps of a client with that many training samples; int32."""
    return local.epochs * -(-num_examples // local.batch_size)


def train_client(
    method: Method,
    local: LocalTraining,
    client: Client,
    key: Array,
    limit: Array | None = None,
) -> LocalResult:
    """Runs a client's epochs; steps past its own last batch change nothing.

    Args:
      method: Its hooks are called here.
      local: Epochs, batch size, optimizer.
      client: What the hooks see of the client. An epoch runs ``data.max_batches``
        batches, for every client that is mapped together.
      key: The client's PRNG key of this round.
      limit: int32, steps that it takes at most; None: all.

    Returns:
      The trained client.
    """
    begin_key, order_key, step_key = jax.random.split(key, 3)
    context, metrics = method.begin(client, begin_key)
    make = local.optimizer or torch_sgd(momentum=method.momentum)
    make = clipped(make, local.clip_grad_norm)
    frozen = client.model.frozen.params
    optimizer = without_frozen(make(client.learning_rate), frozen)
    training = Training(method, local, client, optimizer, limit)
    start = Carry(
        params=client.params,
        batch_stats=client.batch_stats,
        optimizer=training.optimizer.init(client.params),
        context=context,
        metrics=training.no_metrics(context),
        done=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.fori_loop(
        0,
        local.epochs,
        lambda e, carry: training.epoch(e, order_key, step_key, carry),
        start,
    )
    trained = LocalUpdate(end.params, end.batch_stats)
    upload, memory = method.finish(client, trained, end.context)
    return LocalResult(
        end.params,
        end.batch_stats,
        upload,
        memory,
        method.weight(client, end.context),
        metrics | end.metrics,
    )


@dataclass(frozen=True)
class Training:
    """One client's training as functions of what changes, the ``Carry``.

    Attributes:
      method: Its hooks.
      local: Epochs, batch size.
      client: What the hooks see.
      optimizer: The client's.
      limit: Steps that it takes at most; None: all.
    """

    method: Method
    local: LocalTraining
    client: Client
    optimizer: optax.GradientTransformation
    limit: Array | None = None

    def objective(
        self, params: Params, batch_stats: Params, batch: Batch, context: PyTree
    ) -> tuple[Array, tuple[Outputs, Params, Sums]]:
        """The loss of a batch, in nats; its forward pass, statistics and metrics."""
        method, client = self.method, self.client
        outputs, new_stats = method.forward(client, params, batch_stats, batch, context)
        task, count = task_loss(client.model, outputs, batch)
        extra, sums = method.loss(client, outputs, batch, context)
        sums = {"loss_task": (task, count)} | sums
        return task / jnp.maximum(count, 1.0) + extra, (outputs, new_stats, sums)

    def step(self, batch: Batch, is_real: Array, key: Array, carry: Carry) -> Carry:
        """One optimizer step; nothing changes where ``is_real`` is false."""
        batch = with_key(self.client.model, batch, key)
        grads, (outputs, new_stats, sums) = jax.grad(self.objective, has_aux=True)(
            carry.params, carry.batch_stats, batch, carry.context
        )
        this_step = Step(carry.params, outputs, batch, key)
        grads, context = self.method.update(
            self.client, grads, this_step, carry.context
        )
        updates, optimizer = self.optimizer.update(grads, carry.optimizer, carry.params)
        params = optax.apply_updates(carry.params, updates)
        params = keep_frozen(self.client.model.frozen.params, params, carry.params)
        optimizer = select(is_real, optimizer, carry.optimizer)
        trains = self.client.model.trained(self.client.data.available)
        if self.method.trained is not None:
            chosen = self.method.trained(self.client, carry.done)
            trains = scale_blocks(chosen, trains)
            optimizer = keep_unowned(trains, optimizer, carry.optimizer, is_real)
        return Carry(
            jax.tree.map(
                lambda own, new, old: select(is_real & (own > 0), new, old),
                trains,
                params,
                carry.params,
            ),
            select(is_real, new_stats, carry.batch_stats),
            optimizer,
            select(is_real, context, carry.context),
            jax.tree.map(jnp.add, carry.metrics, sums),
            carry.done + is_real,
        )

    def epoch(self, e: Array, order_key: Array, step_key: Array, carry: Carry) -> Carry:
        """Pass number ``e`` over the client's samples."""
        local, data = self.local, self.client.data
        if local.shuffle:
            order = shuffled_positions(jax.random.fold_in(order_key, e), data)
        else:
            order = jnp.arange(data.capacity)
        batches = -(-data.num_examples // local.batch_size)

        def body(b: Array, carry: Carry) -> Carry:
            start = b * local.batch_size
            positions = jax.lax.dynamic_slice_in_dim(order, start, local.batch_size)
            places = start + jnp.arange(local.batch_size)
            is_real, valid = b < batches, places < data.num_examples
            if self.limit is not None:  # a step that is not taken has no samples
                is_real &= carry.done < self.limit
                valid &= is_real
            batch = data.batch(positions, valid)
            key = jax.random.fold_in(jax.random.fold_in(step_key, e), b)
            if local.augment is not None:
                key, augment_key = jax.random.split(key)
                batch = local.augment(augment_key, batch)
            return self.step(batch, is_real, key, carry)

        carry = jax.lax.fori_loop(0, data.max_batches, body, carry)
        if self.method.epoch_end is not None:
            params, stats = carry.params, carry.batch_stats
            new = self.method.epoch_end(self.client, params, stats, carry.context)
            carry = carry._replace(context=new)
        return carry

    def no_metrics(self, context: PyTree) -> Sums:
        """The metrics of no step at all: zeros."""
        client = self.client
        positions = jnp.arange(self.local.batch_size)

        def metrics() -> Sums:
            batch = client.data.batch(positions, positions < client.data.num_examples)
            batch = with_key(client.model, batch, jax.random.key(0))
            values = self.objective(client.params, client.batch_stats, batch, context)
            return values[1][2]

        shapes = jax.eval_shape(metrics)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
