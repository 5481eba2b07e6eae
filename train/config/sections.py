"""What the parts of the configuration are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerConfig(Section):
    """AdamW."""

    lr: float = Field(gt=0, description="Learning rate, after the warm-up.")
    betas: tuple[float, float] = Field(
        (0.0, 0.999),
        description="Decay of Adam's two moving averages, of the gradient and of its square; a first one of 0 is usual "
        "where two networks chase each other.",
    )
    eps: float = Field(1e-8, gt=0, description="1e-15 lets gradients near 1e-9 through, as a LoRA of a 13B model has.")
    weight_decay: float = Field(0.0, ge=0, description="Share of a weight, times lr, that every update takes away.")
    warmup: int = Field(0, ge=0, description="Updates of this optimizer over which lr rises from 0.")
    final_lr: float | None = Field(
        None, gt=0, description="What lr falls to in a straight line until the last update of the run; none: it stays."
    )
    decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the run, at its end, over which lr falls to final_lr; 1 is the whole run.",
    )
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")

    def rate(self, update: int, progress: float) -> float:
        """The learning rate of the `update`-th update (from 0) with `progress` of the run done (0 to 1)."""
        final = self.lr if self.final_lr is None else self.final_lr
        fallen = max(0.0, (progress - (1 - self.decay)) / self.decay)
        lr = self.lr + (final - self.lr) * fallen
        return lr * min(1.0, (update + 1) / self.warmup) if self.warmup else lr


class EmaConfig(Section):
    """A moving average of the generator's weights, which is then what is validated and exported."""

    decay: float = Field(0.99, gt=0, lt=1, description="Share of the average that stays at an update.")
    start: int = Field(0, ge=0, description="First updates, after which averaging begins.")
    on_cpu: bool = Field(False, description="Keep it in main memory: 4 bytes per trained weight, over all processes.")
