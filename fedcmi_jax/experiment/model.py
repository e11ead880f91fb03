"""The model of a configuration: one encoder per modality, and their fusion."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedcmi_jax import models
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.experiment.config import Config, create, lookup, section
from fedcmi_jax.types import Model, Start


def build_model(
    config: Config,
    dataset: Dataset,
    needs_projectors: bool,
    encoders: Mapping[str, Any] | None = None,
    model: Model | None = None,
) -> Model:
    """The model that a configuration describes.

    Args:
      config: The configuration.
      dataset: Its data set.
      needs_projectors: Whether the method needs a two-projector model.
      encoders: Modality -> module; None: those that the configuration names.
      model: In the place of architecture and encoders; precision, adapters and what is
        frozen are the configuration's. None: there is none.

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
    if model is None:
        encoders = _encoders(config, dataset) if encoders is None else encoders
        model = _around(config, dataset, needs_projectors, encoders)
    if config.model.precision == "bfloat16":
        model = models.mixed_precision(model)
    if config.model.lora_rank > 0:
        model = models.lora(model, rank=config.model.lora_rank)
    return models.frozen(model, config.freeze)


def _around(
    config: Config,
    dataset: Dataset,
    needs_projectors: bool,
    encoders: Mapping[str, Any],
) -> Model:
    """The architecture around the encoders."""
    chosen, sizes = config.model, (dataset.shapes, dataset.num_classes)
    plain = chosen.architecture == "auto" and not needs_projectors
    if plain or chosen.architecture == "classifier":
        return models.classifier(encoders, *sizes, fusion=chosen.fusion)
    return models.two_projector(
        encoders,
        *sizes,
        fusion=chosen.fusion,
        projector=chosen.projector,
        width=chosen.width,
        stand_in=chosen.stand_in,
    )


def first_start(config: Config, model: Model) -> Callable[[], Start | None]:
    """What reads ``init_from``, once, when it is first called; None: there is none."""

    @functools.cache
    def start() -> Start | None:
        if config.init_from is None:
            return None
        # Imported here: it reads runs, which are experiments, which have models.
        from fedcmi_jax.experiment.pretrained import init_from

        return init_from(model, config.init_from)

    return start


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
        shape = dataset.shapes[modality]
        if isinstance(shape, dict):
            continue  # of several arrays, which the encoder knows by name
        is_text = np.issubdtype(shape.dtype, np.integer)
        if is_text != getattr(encoders[modality], "takes_token_ids", False):
            has, remedy = ("token ids", "text") if is_text else ("numbers", "another")
            raise ValueError(
                f"encoder_names: modality {modality!r} has {has}, which encoder "
                f"{name!r} does not take; give {remedy}"
            )
    return encoders
