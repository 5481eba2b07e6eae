"""The parts of the configuration that say how a run is watched and kept, and not what it learns."""

from typing import Any, Literal

from pydantic import Field, field_validator

from .sections import Positive, Section


class CheckpointConfig(Section):
    """Saved state, from which a run resumes exactly and is exported."""

    every: Positive = Field(50, description="Generator updates between checkpoints; the last one is always saved.")
    minutes: float = Field(
        60.0,
        ge=0,
        description="Minutes after which one is saved at the end of the round, however few updates that were; 0 never.",
    )
    keep: Positive = Field(
        2, description="How many of the newest to keep; the best one and the newest healthy one are kept besides."
    )
    measure: str = Field(
        "generator/real_fake_distance",
        description="The best checkpoint is the healthy one with the lowest median of this metric over the last "
        "guard.window rounds; with a fake branch only those from the metric's peak on count, and before it the newest "
        "is the best. Where the method has no such metric, generator/loss is taken.",
    )


class GuardConfig(Section):
    """What counts as collapse, and what is done then (see `guard.RULES`).

    Ceilings and floors are multiples of the medians over the run's first rounds, unless they say otherwise.
    """

    action: Literal["off", "warn", "stop", "rollback"] = Field(
        "stop",
        description="Once something has been wrong for `patience` rounds: `stop` ends the run, `rollback` continues "
        "from the last good checkpoint with other draws and a lower learning rate, `warn` only says so. What is not "
        "finite always ends a round: with `rollback` it goes back, else it stops.",
    )
    warmup: int = Field(10, ge=0, description="First rounds that do not count: the fake score is still new.")
    window: Positive = Field(20, description="Rounds of which medians are taken; the baseline is after the warm-up.")
    patience: Positive = Field(10, description="Rounds in a row that something must be wrong.")
    rollbacks: int = Field(2, ge=0, description="How often a run may go back before it stops instead.")
    lr_factor: float = Field(0.5, gt=0, le=1, description="Of all learning rates, at every rollback.")
    motion_floor: float = Field(0.4, ge=0, description="Mean change of the samples' latents from frame to frame.")
    variance_floor: float = Field(0.2, ge=0, description="Variance of the samples' latents over time.")
    deviation_ceiling: float = Field(1.6, gt=0, description="Standard deviation of the samples' latents.")
    deviation_floor: float = Field(0.5, ge=0, description="The same, downwards.")
    saturation_ceiling: float = Field(0.05, gt=0, le=1, description="Share of latent values beyond 4; no multiple.")
    gradient_ceiling: float = Field(4.0, gt=0, description="Mean |g| of distribution matching.")
    distance_ceiling: float = Field(4.0, gt=0, description="Mean distance of the real from the fake score.")
    fake_loss_ceiling: float = Field(4.0, gt=0, description="Loss of the fake score.")
    guidance_ceiling: float = Field(
        20.0, gt=0, description="Guidance's part of |g| over distribution matching's; no multiple."
    )

    @field_validator("action", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # YAML reads off, unquoted, as false.
        return "off" if value is False else value


class LoggingConfig(Section):
    """Where metrics go besides `metrics.jsonl` and TensorBoard."""

    wandb: str | None = Field(None, description="Project at Weights & Biases; needs `pip install wandb` and a login.")
