"""Mixed precision: a model that computes in a short float and is trained in float32."""

import jax
import jax.numpy as jnp

from fedcmi_jax.types import Array, Batch, Model, Outputs, Params, PyTree


def mixed_precision(model: Model, dtype: jnp.dtype | type = jnp.bfloat16) -> Model:
    """The model with activations and products in ``dtype``, all else in float32.

    Parameters, gradients, optimizer state, BatchNorm statistics, losses and the sums
    over clients stay float32: parameters are cast on the way in, outputs on the way
    out.

    Args:
      model: Any model.
      dtype: Float type to compute in.

    Returns:
      The model with another ``apply``, ``fuse`` and ``shares``.

    Example:
      >>> import fedcmi_jax as fc
      >>> shapes = {"a": (4,), "b": (4,)}
      >>> encoders = {m: fc.models.mlp(features=8) for m in shapes}
      >>> model = mixed_precision(fc.models.classifier(encoders, shapes, 3))
      >>> model.num_classes
      3
    """

    def apply(
        params: Params, stats: Params, batch: Batch, train: bool
    ) -> tuple[Outputs, Params]:
        short = batch._replace(inputs=_cast(batch.inputs, dtype))
        outputs, new_stats = model.apply(_cast(params, dtype), stats, short, train)
        return _cast(outputs, jnp.float32), _cast(new_stats, jnp.float32)

    def fuse(params: Params, parts: dict[str, Array]) -> Array:
        assert model.fuse is not None  # noqa: S101 (only set below if it is)
        logits = model.fuse(_cast(params, dtype), _cast(parts, dtype))
        return logits.astype(jnp.float32)

    def shares(params: Params, parts: dict[str, Array]) -> dict[str, Array]:
        assert model.shares is not None  # noqa: S101 (only set below if it is)
        logits = model.shares(_cast(params, dtype), _cast(parts, dtype))
        return _cast(logits, jnp.float32)

    return model._replace(
        apply=apply,
        fuse=fuse if model.fuse else None,
        shares=shares if model.shares else None,
    )


def _cast(tree: PyTree, dtype: jnp.dtype | type) -> PyTree:
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
