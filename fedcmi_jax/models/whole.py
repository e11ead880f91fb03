"""A model of the user's own, with what it leaves out filled in."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedcmi_jax.types import Array, Model, Params, owned_by_all


def complete(model: Model) -> Model:
    """The model with ownership of its blocks, checked.

    Where ``owned`` is left out, a kind whose blocks are the modalities, ``{kind:
    {modality: tree}}``, is owned by the clients with the modality, any other by all.
    Where ``trained`` is left out, it is ``owned``.

    Args:
      model: Any model.

    Returns:
      The model.

    Raises:
      ValueError: Its parameters are no dict of blocks, or its loss does not give one
        number a sample.

    Example:
      >>> params = {"stem": {"a": jnp.ones(2), "b": jnp.ones(2)}, "out": jnp.ones(2)}
      >>> model = complete(Model(("a", "b"), 2, lambda key: (params, {}), apply=None))
      >>> blocks = model.owned(jnp.array([1.0, 0.0]))
      >>> jax.tree.map(float, blocks)
      {'out': 1.0, 'stem': {'a': 1.0, 'b': 0.0}}
    """
    if model.loss is not None:
        _check_loss(model)
    if model.owned is owned_by_all:
        model = model._replace(owned=_by_name(model))
    if model.trained is owned_by_all:
        model = model._replace(trained=model.owned)
    return model


def _by_name(model: Model) -> Callable[[Array], Params]:
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    if not isinstance(params, dict):
        raise ValueError(
            f"model: init gives parameters of type {type(params).__name__}; give a "
            "dict of blocks, {kind: tree} or {kind: {modality: tree}}"
        )
    names = set(model.modalities)
    by_modality = {
        kind: isinstance(block, dict) and set(block) == names
        for kind, block in params.items()
    }

    def owned(available: Array) -> Params:
        own = {m: available[i] for i, m in enumerate(model.modalities)}
        return {kind: own if by_modality[kind] else jnp.ones(()) for kind in params}

    return owned


def _check_loss(model: Model) -> None:
    logits, labels = jnp.zeros((2, model.num_classes)), jnp.zeros(2, jnp.int32)
    assert model.loss is not None  # noqa: S101 (asked before)
    shape = getattr(jax.eval_shape(model.loss, logits, labels), "shape", None)
    if shape != (2,):
        raise ValueError(
            f"loss: gives shape {shape} for the logits of 2 samples; give one loss a "
            "sample, [B]"
        )
