"""The trainer's configuration: every field typed, explained and checked; a misspelt one is an error that names it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from magicdistill_core.branch import A_STRONG, A_WEAK
from magicdistill_core.errors import ConfigError
from magicdistill_core.recipe import Sampler

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BranchConfig(Section):
    """Size of a low-rank branch; it adds `alpha / rank * up @ down` to every linear of the blocks."""

    rank: Positive = 64
    alpha: float = Field(64.0, gt=0)


class ModelConfig(Section):
    """What is trained, from what, and in which precision."""

    teacher: str = Field(description="Path of the teacher's checkpoint, or `pocket` for the model that ships with us.")
    null_prompt: Path | None = Field(
        None, description="File with `null_prompt.*` tensors, for a teacher whose own file has none."
    )
    mode: Literal["full", "lora"] = Field(
        "full",
        description="`full` trains a copy of the teacher; `lora` a branch, and one frozen base serves all.",
    )
    precision: Literal["bf16", "fp32"] = "bf16"
    activation_checkpointing: bool = Field(False, description="Recompute blocks in backward: less memory, more time.")
    keep_attention: bool = Field(
        False,
        description="With activation_checkpointing: keep what attention gave instead of recomputing it. Faster, the "
        "more the longer the clips; on 13B 25 GB more at 129 frames of 544x960.",
    )
    generator_branch: BranchConfig = Field(BranchConfig(), description="Mode `lora` only.")
    fake_branch: BranchConfig = Field(BranchConfig(), description="The branch of the fake and real scores.")


class ScheduleConfig(Section):
    """How the generator will be sampled; written into the recipe of what is exported."""

    steps: Positive = 4
    shift: float = Field(5.0, gt=0)
    sampler: Sampler = Field("euler", description="`euler`, or `renoise` (DMD2's).")


class DataConfig(Section):
    """The prepared dataset and how much of it one update sees."""

    dataset: Path = Field(description="Folder that `magicdistill prepare` wrote.")
    micro_batch: Positive = Field(1, description="Samples in one forward on one process.")
    accumulation: Positive = Field(1, description="Micro-batches in one optimizer step, for either engine.")


class W2SConfig(Section):
    """Weak-to-strong distribution matching (MagicDistillation)."""

    name: Literal["w2s"] = "w2s"
    a_weak: float = Field(A_WEAK, ge=0, description="Branch weight of the real score (MD Eq. 6); 0 is vanilla DMD.")
    a_strong: float = Field(A_STRONG, gt=0, description="Branch weight of the fake score.")
    fake_updates: Positive = Field(5, description="Updates of the fake branch before each of the generator.")
    normalize: bool = Field(True, description="DMD2's normalisation; false is the papers' own form.")
    fake_loss_scale: float = Field(1.0, gt=0, description="MD uses 1e4; clipping sees the unscaled gradient.")


class OptimizerConfig(Section):
    """AdamW."""

    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.0, 0.999)
    eps: float = Field(1e-8, gt=0, description="1e-15 lets gradients near 1e-9 through, as a LoRA of a 13B model has.")
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0, description="Updates of this optimizer over which lr rises from 0.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")


class ZeroConfig(Section):
    """DeepSpeed's sharding."""

    stage: Literal[0, 1, 2, 3] = 2


class ValidationConfig(Section):
    """Samples with fixed seeds, to be looked at."""

    every: int = Field(50, ge=0, description="Generator updates between samples; 0 never.")
    samples: Positive = Field(4, description="Start images, evenly spread over the dataset.")
    seed: int = 0
    vae: str = Field("pocket", description="VAE that decodes the samples: a path, or `pocket`.")


class CheckpointConfig(Section):
    """Saved state, from which a run resumes exactly and is exported."""

    every: Positive = Field(50, description="Generator updates between checkpoints; the last one is always saved.")
    keep: Positive = Field(2, description="How many of the newest to keep.")


class TrainConfig(Section):
    """A whole training run."""

    run: Path = Field(description="Folder of the run: checkpoints, metrics, samples.")
    seed: int = 0
    updates: Positive = Field(description="Generator updates in all.")
    model: ModelConfig
    data: DataConfig
    method: W2SConfig = W2SConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    generator_optimizer: OptimizerConfig
    fake_optimizer: OptimizerConfig
    zero: ZeroConfig = ZeroConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"Cannot read the setting {text!r}. Expected key=value, such as zero.stage=3.")
    *path, leaf = key.split(".")
    node: Any = tree
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"In {text!r}, {part} is a value and has no fields. Check the key's spelling.")
    node[leaf] = yaml.safe_load(value)


def parse_config(tree: dict[str, Any], source: str) -> TrainConfig:
    """A configuration from plain data.

    Raises:
        ConfigError: naming every field that is unknown, missing or has a wrong value.
    """
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        problems = []
        for entry in error.errors():
            name = ".".join(map(str, entry["loc"]))
            kind = "there is no such field" if entry["type"] == "extra_forbidden" else entry["msg"]
            problems.append(f"{name}: {kind}")
        raise ConfigError(
            f"{source} is no valid configuration. {'; '.join(problems)}. Correct these fields."
        ) from error


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML configuration and apply `key.key=value` overrides.

    Raises:
        ConfigError: if the file is absent, no YAML mapping, or not valid.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is no YAML file ({error}). Correct it at that place.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name} holds no settings. Expected a YAML mapping; see the presets in train/presets.")
    for text in overrides:
        _override(tree, text)
    return parse_config(tree, path.name)
