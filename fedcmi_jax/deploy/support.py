"""What can be deployed, and why the rest cannot."""

import jax
import jax.numpy as jnp

from fedcmi_jax.deploy.client import Shapes
from fedcmi_jax.deploy.plan import Plan
from fedcmi_jax.deploy.server import no_table, table_federation
from fedcmi_jax.experiment.config import Config
from fedcmi_jax.methods.seen import Cohort
from fedcmi_jax.setup import Setup
from fedcmi_jax.types import Params, PyTree
from fedcmi_jax.uploads import mean_upload, weighted_upload


def check(plan: Plan, setup: Setup, shapes: Shapes) -> None:
    """Refuses what cannot run with clients elsewhere.

    Args:
      plan: The deployment's.
      setup: Its algorithm's.
      shapes: ``client.shapes_of`` of both.

    Raises:
      ValueError: One line: what it is, and why.
    """
    check_config(plan.config)
    method = setup.method
    if method.select is not None:
        raise ValueError(
            f"method.name: {method.name!r} chooses a cohort by what it measures on all "
            "clients, which have their data to themselves; choose another for deploy"
        )
    if reads_memory(plan, setup, shapes):
        raise ValueError(
            f"method.name: the server of {method.name!r} reads what is remembered of "
            "each client, which stays there; choose another for deploy"
        )
    if plan.config.init_from is not None and jax.tree.leaves(shapes.kept):
        raise ValueError(
            f"init_from: method {method.name!r} keeps at each client what depends on "
            "the first parameters, and the file is not there; leave it out"
        )


def check_config(config: Config) -> None:
    """Refuses fields of a configuration that mean nothing with clients elsewhere.

    Raises:
      ValueError: One line that names the field.

    Example:
      >>> from fedcmi_jax.experiment.config import from_dict
      >>> check_config(from_dict({"seeds": 3}))
      Traceback (most recent call last):
      ValueError: seeds: 3, but a deployment trains one model; give 1
    """
    if config.seeds > 1:
        raise ValueError(
            f"seeds: {config.seeds}, but a deployment trains one model; give 1"
        )
    if config.attack.name != "none":
        raise ValueError(
            f"attack.name: {config.attack.name!r} is what simulated clients do; leave "
            "it out to deploy"
        )
    if config.systems.name != "none":
        raise ValueError(
            f"systems.name: {config.systems.name!r} is what simulated clients meet; "
            "leave it out to deploy"
        )
    if config.early_stop_rounds is not None:
        raise ValueError(
            f"early_stop_rounds: {config.early_stop_rounds}, but a deployment trains "
            "all its rounds; leave it out"
        )


def reads_memory(plan: Plan, setup: Setup, shapes: Shapes) -> bool:
    """Whether a server hook uses, or changes, what is remembered of clients.

    ``merge`` and ``server_update`` are traced; the memory must leave ``merge`` as it
    came, and no operation may have it as an operand.
    """
    method, k = setup.method, setup.clients_per_round
    received, answer, kept = shapes
    rows = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((plan.clients, *s.shape), s.dtype), kept.memory
    )
    upload = jax.eval_shape(lambda x: mean_upload(weighted_upload(x)), answer.upload)
    federation = table_federation(plan, no_table(plan))

    def hooks(memory: PyTree, shared: PyTree, params: Params, upload: PyTree) -> PyTree:
        cohort = Cohort(
            model=setup.model,
            federation=federation,
            params=params,
            shared=shared,
            memory=memory,
            ids=jnp.arange(k),
            participation=jnp.ones((k, len(plan.modalities))),
            accepted=jnp.ones(k, bool),
            num_accepted=jnp.float32(k),
        )
        stepped: PyTree = ()
        if method.server_update is not None:
            stepped = method.server_update(cohort, params, upload)
            cohort = cohort._replace(shared=stepped[1])
        shared, memory = method.merge(cohort, upload)
        return memory, shared, stepped

    arguments = (rows, received.shared, received.params, upload)
    jaxpr = jax.make_jaxpr(hooks)(*arguments).jaxpr
    count = len(jax.tree.leaves(rows))
    own = jaxpr.invars[:count]
    used = [x for line in jaxpr.eqns for x in line.invars] + jaxpr.outvars[count:]
    is_same = all(a is b for a, b in zip(own, jaxpr.outvars[:count], strict=True))
    return not is_same or any(x is y for x in own for y in used)
