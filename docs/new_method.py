"""A method of your own: copy this file, keep the hooks you need, delete the rest.

A method is a ``Method``: a record of pure functions, called hooks, that the round calls
at fixed places. Every hook has a default; the record of defaults is FedAvg. So the file
of a method holds its formulas and nothing else: no loop over clients, no aggregation.
``docs/design.md`` says when each hook is called, ``fedcmi_jax.methods.base.Method``
documents their arguments.

The method below is a small real one, FedCM (client-level momentum; Xu et al., 2021,
arXiv 2106.10874): a local gradient g is mixed with the direction in which the cohort
went in the last round. It uses the hooks that most methods need:

  init      the direction is zero before the first round
  begin     how much of it a client mixes in, once per round
  update    g <- alpha g + (1 - alpha) direction, in every local step
  finish    the client's own mean gradient, and how it is averaged
  merge     the cohort's mean becomes the next direction

The hooks that it does not need are listed at the end.

To make it a method of this package: save it as ``fedcm.py`` in ``fedcmi_jax/methods/``,
add a line to ``REGISTRY`` in ``methods/__init__.py``, a section of formulas to
``docs/methods.md`` and a row to the README's table. Then it has flags and help, made
from the signature and the docstring of the factory:
``fedcmi train --method.name=fedcm --method.alpha=0.2``. In a package of your own it has
all that after ``fc.register("method", "fedcm", fedcm)`` and with ``--import=package``,
which the run remembers; or pass it to ``fc.build_algorithm``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fedcmi_jax as fc
from fedcmi_jax.methods import Client, Cohort, LocalUpdate, Mean, Step
from fedcmi_jax.types import Array, Model, Params, PyTree, Sums

# --------------------------------------------------------------------------------------
# State. Name what is kept, so that hooks read like the formulas. Any tree of arrays is
# fine; () is nothing.
# --------------------------------------------------------------------------------------


class Shared(NamedTuple):
    """What the server keeps between rounds; checkpointed with everything else.

    Attributes:
      direction: Mean gradient of the last cohort, like the parameters.
    """

    direction: Params


class Context(NamedTuple):
    """What one client knows during one round.

    Attributes:
      mixed: float32, the share of the direction in every step.
    """

    mixed: Array


# --------------------------------------------------------------------------------------
# The factory: options in, a record out. Options are keyword-only with defaults; the
# docstring's Args become the help of the command line.
# --------------------------------------------------------------------------------------


def fedcm(*, alpha: float = 0.1) -> fc.Method:
    """Local steps follow the cohort's last direction: client-level momentum.

    With K_i steps at learning rate eta, Delta = 0 before the first round:
      g <- alpha g + (1 - alpha) Delta
      Delta <- sum_i n_i (w_G - w_i) / (K_i eta) / sum_i n_i

    Deviations from the paper: clients count by their samples n_i, not alike; the first
    round is FedAvg, where the paper scales its gradients by alpha.

    Args:
      alpha: Share of the client's own gradient, in [0, 1]; 1 is FedAvg without momentum
        exactly (paper: 0.1).

    Raises:
      ValueError: alpha is outside [0, 1].
    """
    # --- Checks: one line that names the argument, its value and the remedy. A traced
    # value cannot be compared; leave it unchecked if users may vmap over the option.
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: {alpha} is outside [0, 1]; it is a share, try 0.1")

    # --- Hooks. They see ONE client: no array has a client axis. They must be pure and
    # traceable: jnp.where instead of if, masks instead of removing samples.

    def init(
        model: Model, params: Params, num_clients: int
    ) -> tuple[Shared, tuple[()]]:
        # The server's state, and the memory of one client. Shapes and dtypes must stay
        # what they are here. FedCM remembers nothing of a client: (). A memory of the
        # size of the model, as SCAFFOLD's, is stored once per client of the federation.
        del model, num_clients
        return Shared(jax.tree.map(jnp.zeros_like, params)), ()

    def begin(client: Client, key: Array) -> tuple[Context, Sums]:
        # Once per client and round, before its first step. The place to look at its
        # data (client.data.sum, client.data.map) with the parameters it starts from.
        # Draws come from the key only. The second value is reported in metrics.jsonl:
        # name -> (weighted sum, weight).
        del key
        mixed = jnp.where(client.round > 0, 1.0 - alpha, 0.0)
        return Context(mixed), {"mixed": (mixed, jnp.ones(()))}

    def update(
        client: Client, grads: Params, step: Step, context: Context
    ) -> tuple[Params, Context]:
        # In every local step, between autodiff and the optimizer. The context may
        # change from step to step; FedCM's does not.
        del step
        mixed = jax.tree.map(
            lambda g, d: (1.0 - context.mixed) * g + context.mixed * d,
            grads,
            client.shared.direction,
        )
        return mixed, context

    def finish(
        client: Client, local_update: LocalUpdate, context: Context
    ) -> tuple[PyTree, tuple[()]]:
        # After the last step: what the client sends beside its parameters, and its new
        # memory. Every leaf says how it adds up over the cohort: Mean(value, weight) or
        # Sum(value). Weights are by block, 0 where the client lacks the modality: what
        # it does not own must not count. A client without samples exists (padding): no
        # division by its 0 steps.
        del context
        length = jnp.maximum(client.num_steps, 1) * client.learning_rate
        own = client.model.owned(client.data.available)
        gradients = jax.tree.map(
            lambda w, w_global: (w_global - w) / length,
            local_update.params,
            client.params,
        )
        sent = jax.tree.map(
            lambda weight, block: Mean(block, client.data.num_examples * weight),
            own,
            gradients,
        )
        return sent, client.memory

    def merge(cohort: Cohort, upload: PyTree) -> tuple[Shared, PyTree]:
        # Once per round, with the upload aggregated: a Mean's value is the cohort's
        # mean, its weight the total. A total of 0 is a block that nobody in the cohort
        # owns: the old direction stays. Clients that were not accepted are not in it.
        direction = jax.tree.map(
            lambda sent, old: jax.tree.map(
                lambda new, old: jnp.where(sent.weight > 0, new, old), sent.value, old
            ),
            upload,
            cohort.shared.direction,
            is_leaf=lambda x: isinstance(x, Mean),
        )
        return Shared(direction), cohort.memory

    # --- The record. momentum is that of the clients' SGD where the user sets none: the
    # direction takes its place here, and finish needs steps of one gradient each.
    return fc.Method(
        name="fedcm",
        momentum=0.0,
        init=init,
        begin=begin,
        update=update,
        finish=finish,
        merge=merge,
    )


# --------------------------------------------------------------------------------------
# The other fields of Method. Delete this list from your copy.
#
#   needs_projectors  True: only a model with projectors and heads will do
#   personal          ("fusion",): kinds of blocks that stay at the client (FedPer)
#   check             raise a ValueError for a model that the method is not defined for
#   select            choose the cohort, and the modalities each client trains
#   start             what a client starts from, if not the global parameters
#   forward           replace the forward pass of a training step
#   loss              a term ADDED to the cross-entropy of the fused logits
#   trained           which blocks the next step may change (FedRep)
#   epoch_end         renew the context after every local epoch
#   weight            the client's weight in the mean of parameters, if not n_i
#   server_update     the server's step, if not adding the mean update (FedDyn, FedNova)
#
# The tests. fedcmi_jax.testing runs what every method must satisfy: padding, chunks,
# resuming, rejected clients and missing modalities change nothing that they should not.
#
#   @pytest.fixture(scope="module")
#   def case():
#       return testing.Case(fedcm())
#
#   @pytest.mark.parametrize("check", testing.CHECKS.values(), ids=testing.CHECKS)
#   def test_fedcm(check, case):
#       check(case)
#
# Beside them, test that the option which switches the method off gives FedAvg exactly,
# and one formula against numbers worked out by hand or by NumPy.
# --------------------------------------------------------------------------------------
