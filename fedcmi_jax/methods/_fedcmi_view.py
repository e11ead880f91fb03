"""What the round's global model shows FedCMI of a client's samples."""

from typing import NamedTuple

import jax.numpy as jnp

from fedcmi_jax.methods._fedcmi_options import Options
from fedcmi_jax.methods._infiltration import class_probabilities
from fedcmi_jax.methods._signals import (
    calibration_temperature,
    class_gates,
    without_own,
)
from fedcmi_jax.methods.seen import Client
from fedcmi_jax.types import Array, Batch, Model, Outputs


class View(NamedTuple):
    """Of n samples, in eval mode.

    Attributes:
      logits: [n, M, C] of the self-projections.
      lessons: What teaches where those do not: [n, M, C], row k for student k; with
        level=features [n, M, D], row d of teacher d. None: the logits of d.
    """

    logits: Array
    lessons: Array | None = None

    def at(self, positions: Array) -> "View":
        """The view of some of the samples."""
        lessons = None if self.lessons is None else self.lessons[positions]
        return View(self.logits[positions], lessons)


def global_view(options: Options, client: Client, batch: Batch) -> View:
    """The view of a batch under the global model."""
    outputs, _ = client.model.apply(client.params, client.batch_stats, batch, False)
    logits = self_logits(client.model, outputs)
    if options.level == "features":
        return View(logits, stacked(client.model, outputs.parts))
    if options.teacher == "fused":
        z = outputs.logits[:, None]
        return View(logits, jnp.broadcast_to(z, logits.shape))
    if options.teacher == "fused_without_student":
        assert client.model.shares is not None
        shares = client.model.shares(client.params, outputs.parts)
        own = stacked(client.model, shares)
        return View(logits, without_own(own, batch.available))
    return View(logits)


def calibration(view: View, labels: Array, weights: Array, level: str) -> View:
    """[M] T of the logits, and of the lessons if they are logits, too (else None)."""
    lessons = None
    if view.lessons is not None and level == "logits":
        lessons = calibration_temperature(view.lessons, labels, weights)
    return View(calibration_temperature(view.logits, labels, weights), lessons)


def softened(view: View, softness: View) -> View:
    """z_m / T_m."""
    logits = view.logits / softness.logits[None, :, None]
    if view.lessons is None or softness.lessons is None:
        return view._replace(logits=logits)
    return View(logits, view.lessons / softness.lessons[None, :, None])


def teacher_gates(
    options: Options,
    view: View,
    probabilities: Array,
    held: Array,
    labels: Array,
    weights: Array,
) -> Array:
    """[M, M, C], 1 where modality d (first), or k's lesson, beats k in class c."""
    num_modalities, num_classes = probabilities.shape
    teachers = probabilities[:, None]
    if not options.one_teaches_all:
        assert view.lessons is not None
        of_lessons, _ = class_probabilities(view.lessons, labels, weights, num_classes)
        shape = (num_modalities, num_modalities, num_classes)
        teachers = jnp.broadcast_to(of_lessons[None], shape)
    return class_gates(teachers, probabilities[None], held)


def stacked(model: Model, values: dict[str, Array]) -> Array:
    """[n, M, ...] in the order of the modalities."""
    return jnp.stack([values[m] for m in model.modalities], axis=1)


def self_logits(model: Model, outputs: Outputs) -> Array:
    """[B, M, C]: the heads' logits of the self-projections."""
    return stacked(model, outputs.self_logits)


def learners(options: Options, outputs: Outputs) -> dict[str, Array]:
    """Modality -> what is distilled into: logits of c_k or s_k, or these features."""
    into_c = options.student == "infiltration"
    if options.level == "features":
        return outputs.infiltration if into_c else outputs.parts
    return outputs.infiltration_logits if into_c else outputs.self_logits
