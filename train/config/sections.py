"""The base class of every section of the configuration, and the sections that several others contain."""

from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from .paths import written_path

Positive = Annotated[int, Field(ge=1)]

# Calls of a network in one round, or steps of one schedule: all are lists in memory.
Calls = Annotated[int, Field(ge=1, le=1000)]

# A dimension of tensors.
Size = Annotated[int, Field(ge=1, le=2**16)]

# What a generator of PyTorch takes. A seed is counted on from here modulo 2^64.
Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
SEEDS = 2**64


def _checked(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty; write null if the setting takes it and none is meant")
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise ValueError(f"the text {text!r} has control characters or bytes that are not UTF-8; write it without them")
    return text


def _path_text(value: Any) -> Any:
    return written_path(_checked(value)) if isinstance(value, str) else value


def _number(value: Any) -> Any:
    """Return the number that a text stands for; pydantic compares the choices of a `Literal` without reading text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


# Users write every value as text. Pydantic reads numbers and truth values from it.
Text = Annotated[str, AfterValidator(_checked)]
FilePath = Annotated[Path, BeforeValidator(_path_text)]
FileOrWord = Annotated[str, AfterValidator(_path_text)]
Numbered = BeforeValidator(_number)


def sections_in(annotation: Any) -> list["type[Section]"]:
    """Return the sections that a type names, such as the one in `OptimizerConfig | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


def takes_text(annotation: Any) -> bool:
    """Return whether a setting of this type is a path or a free text, which every text fits. A list of paths is not."""
    if get_origin(annotation) is tuple:
        return False
    return annotation in (str, Path) or any(takes_text(part) for part in get_args(annotation))


class Section(BaseModel):
    """One section of the configuration. Unknown fields and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OptimizerConfig(Section):
    """The AdamW optimizer of one trained network, with its learning rate schedule."""

    lr: float = Field(gt=0, description="Learning rate after the warm-up.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.0, 0.999),
        description="Decay per update of Adam's moving averages of the gradient and of its square. A first value of 0 "
        "is usual where two networks are trained against each other; use 0.9 for a network that is trained alone.",
    )
    eps: float = Field(
        1e-8,
        gt=0,
        description="Adam's epsilon: weights whose gradients are much smaller than this hardly move. Use 1e-15 for a "
        "LoRA of a 13B model, whose gradients are near 1e-9. `signal/generator_below_eps` in the log is the share of "
        "the generator's weights with smaller gradients.",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Each update first multiplies the weights by 1 - lr * weight_decay. 0 is no decay."
    )
    warmup: int = Field(
        0,
        ge=0,
        description="Number of this optimizer's first updates over which the learning rate rises linearly to `lr`. "
        "0 is no warm-up.",
    )
    final_lr: float | None = Field(
        None,
        gt=0,
        description="Learning rate at the last update of the run, reached in a straight line from `lr`. `null` keeps "
        "`lr` to the end.",
    )
    decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the run, counted from its end, over which the learning rate goes from `lr` to "
        "`final_lr`. 1 is the complete run. No effect without `final_lr`.",
    )
    clip: float = Field(
        1.0, gt=0, description="Largest norm of the gradient of an update; a larger gradient is scaled down to it."
    )

    def rate(self, update: int, progress: float) -> float:
        """Return the learning rate of one update.

        Args:
            update: number of the optimizer's update, from 0.
            progress: finished share of the run, 0 to 1.
        """
        final = self.lr if self.final_lr is None else self.final_lr
        fallen = max(0.0, (progress - (1 - self.decay)) / self.decay)
        lr = self.lr + (final - self.lr) * fallen
        return lr * min(1.0, (update + 1) / self.warmup) if self.warmup else lr


class EmaConfig(Section):
    """An exponential moving average (EMA) of the generator's weights.

    Validation and export use the averaged weights; training continues with the weights themselves.
    """

    decay: float = Field(
        0.99,
        gt=0,
        lt=1,
        description="Share of the average that each update keeps. The average covers about 1 / (1 - decay) updates, "
        "and at first fewer: the newest tenth.",
    )
    start: int = Field(
        0, ge=0, description="Number of first updates without averaging: until then the average equals the weights."
    )
    on_cpu: bool = Field(
        False,
        description="Keep the average in main memory instead of GPU memory. It takes 4 bytes per trained weight, "
        "summed over all processes.",
    )
