"""Sections that control how a run is watched and saved. They do not change what the run learns.

A *round* is one generator update with the updates of the other networks before it.
"""

from typing import Literal

from pydantic import Field

from .sections import Positive, Section, Text


class CheckpointConfig(Section):
    """When a run saves its state. A run resumes exactly from a checkpoint, and a checkpoint can be exported."""

    every: Positive = Field(
        50, description="Generator updates between two checkpoints. The last update is always saved."
    )
    minutes: float = Field(
        60.0,
        ge=0,
        description="Longest time between two checkpoints, in minutes: once it has passed, the next round is saved "
        "even if `every` is not reached. 0 turns this off.",
    )
    keep: Positive = Field(
        2,
        description="Number of newest checkpoints to keep. The best one and the newest one that the guard found "
        "healthy are kept as well.",
    )


class GuardConfig(Section):
    """The guard detects when training collapses, and decides what to do then.

    It compares medians over the last rounds with a baseline: the medians over the run's first rounds after `warmup`.
    A floor or ceiling is a multiple of the baseline unless its description states otherwise.
    """

    # The quantities, and the field that limits each, are in `watch.guard.RULES`.

    action: Literal["off", "warn", "stop", "rollback"] = Field(
        "stop",
        description="What happens once a limit is violated for `patience` rounds in a row: `stop` ends the run, "
        "`rollback` continues from the last good checkpoint with new random draws and a lower learning rate, `warn` "
        "only logs it. A value that is not finite ends the round at once, even with `off` and `warn`: `rollback` goes "
        "back, all others stop.",
    )
    warmup: int = Field(
        10,
        ge=0,
        description="Number of first rounds that the guard ignores, because the fake score is still untrained.",
    )
    window: Positive = Field(
        20,
        description="Number of rounds in a median. The baseline is the median of the first `window` rounds after "
        "`warmup`.",
    )
    patience: Positive = Field(
        10, description="Number of rounds in a row that must violate a limit before `action` is taken."
    )
    rollbacks: int = Field(
        2, ge=0, description="How often a run may go back to a checkpoint; after that, `rollback` stops the run."
    )
    lr_factor: float = Field(
        0.5, gt=0, le=1, description="Each rollback multiplies all learning rates by this factor. 1 keeps them."
    )
    motion_floor: float = Field(
        0.4,
        ge=0,
        description="Lowest mean absolute change of the samples' latents from frame to frame. Below it the samples "
        "stop moving.",
    )
    variance_floor: float = Field(
        0.2, ge=0, description="Lowest variance over time of the samples' latents. Below it the samples become stills."
    )
    deviation_ceiling: float = Field(
        1.6, gt=0, description="Highest standard deviation of the samples' latents. Above it the samples saturate."
    )
    deviation_floor: float = Field(
        0.5, ge=0, description="Lowest standard deviation of the samples' latents. Below it the samples wash out."
    )
    saturation_ceiling: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Highest share of latent values with a magnitude above 4. An absolute limit, not a multiple of the "
        "baseline.",
    )
    relative_distance_ceiling: float = Field(
        1.0,
        gt=0,
        description="Highest distance between real and fake score, relative to the real score's error on the samples. "
        "A good fake score stays below 1; above it the two scores drift apart. An absolute limit, not a multiple of "
        "the baseline, because the distance starts at zero with the branch.",
    )
    fake_loss_ceiling: float = Field(
        4.0,
        gt=0,
        description="Highest loss of the fake score. Above it the fake score no longer follows the generator.",
    )
    guidance_ceiling: float = Field(
        20.0,
        gt=0,
        description="Highest ratio of the guidance part of the real score to the distance between real and fake score. "
        "An absolute limit, not a multiple of the baseline.",
    )
    energy_rise: float = Field(
        2.0,
        gt=0,
        description="Highest rise of the validation's energy score above the best one so far, in standard errors of "
        "the difference. Two validations in a row above it are a collapse.",
    )
    energy_jump: float = Field(
        4.0, gt=0, description="Like `energy_rise`, but a single validation above it is a collapse."
    )
    energy_margin: float = Field(
        0.03,
        ge=0,
        description="A smaller rise is never a collapse, whatever its standard error. It is a share of the energy "
        "score at the run's start.",
    )


class LoggingConfig(Section):
    """Additional metrics and places for them. Every run writes `metrics.jsonl` and TensorBoard files to its folder."""

    signal_every: int = Field(
        50,
        ge=0,
        description="Generator updates between two measurements of the training signal: how well the difference of "
        "real and fake score in bf16 agrees with fp32, and the share of weights whose gradients are below Adam's "
        "epsilon. The last round of the fake warm-up is measured too, or without one the first update. A measurement "
        "makes one more rollout and four more calls, two of them in fp32. 0 turns it off.",
    )
    wandb: Text | None = Field(
        None,
        description="Project at Weights & Biases that also receives the metrics. It needs `pip install wandb` and "
        "`wandb login`. `null` sends nothing.",
    )
