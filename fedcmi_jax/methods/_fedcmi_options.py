"""FedCMI's options and their limits; ``fedcmi.fedcmi`` documents them."""

import dataclasses
from typing import Literal

from fedcmi_jax.choices import check_choice
from fedcmi_jax.methods._checks import check_not_negative
from fedcmi_jax.methods._infiltration import RatioMean
from fedcmi_jax.methods._signals import Calibration, Gate, LamScale, Level
from fedcmi_jax.types import Array, Model

Temperature = Literal["class", "weights", "fixed", "none"]

Dominance = Literal["batch_local", "batch_global", "round_global", "server"]

Disagreement = Literal["keep", "neutral"]

Direction = Literal["to_weak", "to_strong", "both"]

Student = Literal["infiltration", "self"]

Teacher = Literal["global", "local", "fused", "fused_without_student"]

CHOICES = {
    "temperature": Temperature,
    "direction": Direction,
    "student": Student,
    "teacher": Teacher,
    "dominance": Dominance,
    "on_disagreement": Disagreement,
    "ratio_mean": RatioMean,
    "gate": Gate,
    "lam_scale": LamScale,
    "calibration": Calibration,
    "level": Level,
}
"""Option -> what it may be."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The arguments of ``fedcmi``, documented there."""

    lam: float | Array
    beta: float | Array
    gamma: float | Array
    mu: float | Array
    temperature: Temperature
    fixed_temperature: float
    min_temperature: float
    direction: Direction
    student: Student
    teacher: Teacher
    dominance: Dominance
    on_disagreement: Disagreement
    ratio_mean: RatioMean
    gate: Gate
    lam_scale: LamScale
    calibration: Calibration
    level: Level
    warmup_rounds: int
    personal_infiltration: bool
    head_owner_multimodal_only: bool

    def __post_init__(self) -> None:
        """Refuses what is out of range."""
        check_not_negative(lam=self.lam, beta=self.beta, gamma=self.gamma, mu=self.mu)
        if not self.fixed_temperature > 0:
            raise ValueError(
                f"fixed_temperature: {self.fixed_temperature} is not positive; 1 is no "
                "change"
            )
        if not 0 <= self.min_temperature <= 1:
            raise ValueError(
                f"min_temperature: {self.min_temperature} is outside [0, 1]; "
                "class-wise temperatures never exceed 1"
            )
        if self.warmup_rounds < 0:
            raise ValueError(
                f"warmup_rounds: {self.warmup_rounds} is negative; give 0 or more"
            )
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.calibration != "none" and self.teacher == "local":
            raise ValueError(
                f"calibration: {self.calibration!r} is of the global model's logits, "
                "and teacher is 'local'; leave one of them out"
            )
        if self.level == "features" and self.teacher != "global":
            raise ValueError(
                "level: 'features' are those of the dominant modality, and teacher is "
                f"{self.teacher!r}; leave one of them out"
            )

    @property
    def is_class_wise(self) -> bool:
        """Whether classes differ in temperature or weight."""
        return self.temperature in ("class", "weights")

    @property
    def one_teaches_all(self) -> bool:
        """Whether what teaches is the dominant modality's, the same for everybody."""
        return self.teacher in ("global", "local")


def check_model(options: Options, model: Model, clients_per_round: int) -> None:
    """Refuses a teacher that the model's fusion does not have."""
    del clients_per_round
    if options.teacher == "fused_without_student" and model.shares is None:
        raise ValueError(
            "teacher: 'fused_without_student' needs a fusion that is a sum over "
            "modalities; choose concat or sum, or teacher 'fused'"
        )
