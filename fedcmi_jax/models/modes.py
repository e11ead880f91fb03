"""Training or evaluation, of a model or of its blocks."""

from collections.abc import Mapping


def awake(train: bool | Mapping[str, bool], block: str) -> bool:
    """Whether a block runs in training mode.

    Args:
      train: ``Model.apply``'s: of all blocks, or of some (``models.frozen``: what
        is frozen whole runs as in evaluation); what is not named trains.
      block: ``encoder/{modality}`` or ``fusion``.

    Example:
      >>> awake(True, "fusion"), awake({"encoder/a": False}, "encoder/a")
      (True, False)
    """
    return train.get(block, True) if isinstance(train, Mapping) else train
