"""The model of a configuration: one encoder per modality, and their fusion."""

from typing import Any

import numpy as np

from fedcmi_jax import models
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.experiment.config import Config, create, lookup, section
from fedcmi_jax.types import Model


def build_model(config: Config, dataset: Dataset, needs_projectors: bool) -> Model:
    """The model that a configuration describes.

    Args:
      config: The configuration.
      dataset: Its data set.
      needs_projectors: Whether the method needs a two-projector model.

    Raises:
      ValueError: The encoders do not fit the modalities.

    Example:
      >>> from fedcmi_jax.experiment.config import from_dict
      >>> from fedcmi_jax.experiment.split import load_dataset
      >>> config = from_dict({"dataset": {"name": "synthetic"}})
      >>> data = load_dataset(config.dataset, print)
      >>> build_model(config, data, needs_projectors=False).num_classes
      10
    """
    encoders = _encoders(config, dataset)
    chosen, sizes = config.model, (dataset.shapes, dataset.num_classes)
    plain = chosen.architecture == "auto" and not needs_projectors
    if plain or chosen.architecture == "classifier":
        model = models.classifier(encoders, *sizes, fusion=chosen.fusion)
    else:
        model = models.two_projector(
            encoders,
            *sizes,
            fusion=chosen.fusion,
            projector=chosen.projector,
            width=chosen.width,
            stand_in=chosen.stand_in,
        )
    if chosen.precision == "bfloat16":
        return models.mixed_precision(model)
    return model


def _encoders(config: Config, dataset: Dataset) -> dict[str, Any]:
    """The encoder of every modality."""
    modalities = dataset.modalities
    names = config.encoder_names or (config.encoder.name,) * len(modalities)
    if len(names) != len(modalities):
        raise ValueError(
            f"encoder_names: {len(names)} for the {len(modalities)} modalities "
            f"{', '.join(modalities)}; give one each"
        )
    encoders = {}
    for modality, given in zip(modalities, names, strict=True):
        name = lookup("encoder_names", given, models.ENCODERS)
        own = (
            config.encoder
            if name == config.encoder.name
            else section("encoder", name)()
        )
        encoders[modality] = create("encoder", own)
        # Any encoder can be run on any numbers; words as quantities teach it nothing.
        is_text = np.issubdtype(dataset.train.inputs[modality].dtype, np.integer)
        if is_text != getattr(encoders[modality], "takes_token_ids", False):
            has, remedy = ("token ids", "text") if is_text else ("numbers", "another")
            raise ValueError(
                f"encoder_names: modality {modality!r} has {has}, which encoder "
                f"{name!r} does not take; give {remedy}"
            )
    return encoders
