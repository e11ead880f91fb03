"""One client's local training: epochs, batches, and the method's hooks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedcmi_jax.federation import ClientData
from fedcmi_jax.methods.base import Client, Finished, Method, Step
from fedcmi_jax.models.augment import Augment
from fedcmi_jax.types import Array, Batch, Outputs, Params, PyTree, Sums

Optimizer = Callable[[Array], optax.GradientTransformation]
"""Learning rate -> optax optimizer."""


def torch_sgd(*, momentum: float = 0.9, weight_decay: float = 1e-4) -> Optimizer:
    """d = g + wd w;  buf = momentum buf + d;  w <- w - lr buf (methods 0.6).

    Args:
      momentum: In [0, 1).
      weight_decay: On all parameters, BatchNorm and biases included.

    Returns:
      Learning rate -> optimizer. State is fresh per client and round.
    """

    def optimizer(learning_rate: Array) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.trace(momentum),
            optax.scale(-learning_rate),
        )

    return optimizer


def linear_decay(
    start: float,
    end: float,
    knee: int,
    rounds: int,
    *,
    legacy: bool = False,
) -> Callable[[Array], Array]:
    """Learning rate lr_t of round t (methods 0.6).

    lr_t = lr_0 for t <= T_0, then lr_0 - (lr_0 - lr_min) (t - T_0) / (R - T_0). The
    public code has (t / R) there, so that its rate jumps down after T_0.

    Args:
      start: lr_0.
      end: lr_min; equal to start: constant.
      knee: T_0, the last round at lr_0.
      rounds: R, rounds of the whole run.
      legacy: The public code's form.

    Returns:
      Round (int32 scalar) -> float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedcmi_jax.local import linear_decay
      >>> float(linear_decay(1.0, 0.0, 4, 8)(jnp.array(6)))
      0.5
    """

    def rate(round: Array) -> Array:
        t = round.astype(jnp.float32)
        if legacy:
            share = t / rounds
        else:
            share = (t - knee) / max(rounds - knee, 1)
        return jnp.where(round <= knee, start, start - (start - end) * share)

    return rate


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
      augment: ``(key, batch) -> batch`` in every step, see ``augment``; None: nothing.

    Raises:
      ValueError: epochs or batch_size is below 1.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float | Array | Callable[[Array], Array] = 0.05
    optimizer: Optimizer | None = None
    shuffle: bool = True
    augment: Augment | None = None

    def __post_init__(self) -> None:
        """Checks the sizes."""
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}: {value} is below 1; give at least 1")

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
      metrics: Sums over its steps.
    """

    params: Params
    batch_stats: Params
    upload: PyTree
    memory: PyTree
    metrics: Sums


def shuffled_positions(key: Array, data: ClientData) -> Array:
    """[capacity] int32: the client's training samples in random order, padding last.

    The order depends on the key and the client's size only, not on the padding.
    """
    positions = jnp.arange(data.capacity)
    draws = jax.random.bits(key, (data.capacity,)) >> 1
    padding = jnp.uint32(2**32 - 1)
    return jnp.argsort(jnp.where(positions < data.num_examples, draws, padding))


def task_loss(outputs: Outputs, batch: Batch) -> tuple[Array, Array]:
    """Sum over real samples of -log softmax(z)[y] in nats, and their number."""
    log_probs = jax.nn.log_softmax(outputs.logits)
    losses = -jnp.take_along_axis(log_probs, batch.labels[:, None], axis=-1)[:, 0]
    return (losses * batch.valid).sum(), batch.valid.sum()


def select(keep: Array, new: PyTree, old: PyTree) -> PyTree:
    """``new`` where the scalar ``keep`` is true, else ``old``."""
    return jax.tree.map(lambda n, o: jnp.where(keep, n, o), new, old)


def train_client(
    method: Method, local: LocalTraining, client: Client, key: Array
) -> LocalResult:
    """Runs a client's epochs; steps past its own last batch change nothing.

    Args:
      method: Its hooks are called here.
      local: Epochs, batch size, optimizer.
      client: What the hooks see of the client. An epoch runs ``data.max_batches``
        batches, for every client that is mapped together.
      key: The client's PRNG key of this round.

    Returns:
      The trained client.
    """
    model, data = client.model, client.data
    begin_key, order_key, step_key = jax.random.split(key, 3)
    context, metrics = method.begin(client, begin_key)
    make = local.optimizer or torch_sgd(momentum=method.momentum)
    optimizer = make(client.learning_rate)
    trained = model.trained(data.available)
    batches = -(-data.num_examples // local.batch_size)

    def objective(params: Params, batch_stats: Params, batch: Batch, context: PyTree):
        outputs, new_stats = method.forward(client, params, batch_stats, batch, context)
        task, count = task_loss(outputs, batch)
        extra, sums = method.loss(client, outputs, batch, context)
        sums = {"loss_task": (task, count)} | sums
        return task / jnp.maximum(count, 1.0) + extra, (outputs, new_stats, sums)

    def step(batch: Batch, is_real: Array, key: Array, carry):
        params, batch_stats, opt_state, context, sums = carry
        grads, (outputs, new_stats, new_sums) = jax.grad(objective, has_aux=True)(
            params, batch_stats, batch, context
        )
        this_step = Step(params, outputs, batch, key)
        grads = method.grads(client, grads, this_step, context)
        updates, new_opt_state = optimizer.update(grads, opt_state, params)
        new_params = optax.apply_updates(params, updates)
        if method.step_end is not None:
            new_context = method.step_end(client, this_step, context)
            context = select(is_real, new_context, context)
        return (
            jax.tree.map(
                lambda own, new, old: select(is_real & (own > 0), new, old),
                trained,
                new_params,
                params,
            ),
            select(is_real, new_stats, batch_stats),
            select(is_real, new_opt_state, opt_state),
            context,
            jax.tree.map(jnp.add, sums, new_sums),
        )

    def first_batch() -> Batch:
        positions = jnp.arange(local.batch_size)
        return data.batch(positions, positions < data.num_examples)

    def epoch(e: Array, carry):
        if local.shuffle:
            order = shuffled_positions(jax.random.fold_in(order_key, e), data)
        else:
            order = jnp.arange(data.capacity)

        def body(b: Array, carry):
            start = b * local.batch_size
            positions = jax.lax.dynamic_slice_in_dim(order, start, local.batch_size)
            places = start + jnp.arange(local.batch_size)
            batch = data.batch(positions, places < data.num_examples)
            key = jax.random.fold_in(jax.random.fold_in(step_key, e), b)
            if local.augment is not None:
                key, augment_key = jax.random.split(key)
                batch = local.augment(augment_key, batch)
            return step(batch, b < batches, key, carry)

        params, batch_stats, opt_state, context, sums = jax.lax.fori_loop(
            0, data.max_batches, body, carry
        )
        if method.epoch_end is not None:
            context = method.epoch_end(client, params, batch_stats, context)
        return params, batch_stats, opt_state, context, sums

    _, (_, _, shapes) = jax.eval_shape(
        lambda: objective(client.params, client.batch_stats, first_batch(), context)
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    start = (
        client.params,
        client.batch_stats,
        optimizer.init(client.params),
        context,
        zeros,
    )
    params, batch_stats, _, context, sums = jax.lax.fori_loop(
        0, local.epochs, epoch, start
    )
    finished = Finished(params, batch_stats, batches * local.epochs)
    upload, memory = method.finish(client, finished, context)
    return LocalResult(params, batch_stats, upload, memory, metrics | sums)
