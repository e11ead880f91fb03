"""FedCMI's options and their limits; ``fedcmi.fedcmi`` documents them."""

import dataclasses
from typing import Literal

from fedcmi_jax.choices import check_choice
from fedcmi_jax.methods._checks import check_not_negative
from fedcmi_jax.methods._infiltration import RatioMean
from fedcmi_jax.types import Array

Temperature = Literal["class", "weights", "fixed", "none"]

Dominance = Literal["batch_local", "batch_global", "round_global", "server"]

Disagreement = Literal["keep", "neutral"]

Direction = Literal["to_weak", "to_strong", "both"]

Student = Literal["infiltration", "self"]

Teacher = Literal["global", "local"]

CHOICES = {
    "temperature": Temperature,
    "direction": Direction,
    "student": Student,
    "teacher": Teacher,
    "dominance": Dominance,
    "on_disagreement": Disagreement,
    "ratio_mean": RatioMean,
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

    @property
    def is_class_wise(self) -> bool:
        """Whether classes differ in temperature or weight."""
        return self.temperature in ("class", "weights")
