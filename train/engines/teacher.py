"""The teacher that a configuration names, as its method trains from it."""

from dataclasses import dataclass, replace
from pathlib import Path

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.null_prompt import load_null_prompt
from magicdistill_core.pocket.files import TEACHER

from ..config.training import POCKET, TrainConfig
from ..networks.weights import null_prompt_of


@dataclass(frozen=True)
class Teacher:
    """The weights, the prompt of every call, and that of the unconditional ones if the method makes any."""

    checkpoint: Checkpoint
    prompt: NullPrompt
    negative: NullPrompt | None


def teacher_path(config: TrainConfig) -> Path:
    """Where the teacher's weights are."""
    return TEACHER if config.model.teacher == POCKET else Path(config.model.teacher)


def load_teacher(config: TrainConfig, device: str = "cpu") -> Teacher:
    """Read the teacher with its prompts.

    Args:
        device: of the weights; `meta` for none, only their shapes.

    Raises:
        CheckpointError: if a file is absent or damaged, the weights cannot be taught from, or there is no null prompt.
        ConfigError: if the method does not suit the teacher.
    """
    model = config.model
    checkpoint = config.method.prepared(load_checkpoint(teacher_path(config), device), model.mode).teacher(
        model.i2v_mode
    )
    prompted = checkpoint
    if model.null_prompt is not None:
        prompted = replace(checkpoint, null_prompt=load_null_prompt(model.null_prompt))
    negative = None if model.negative_prompt is None else load_null_prompt(model.negative_prompt)
    return Teacher(checkpoint, null_prompt_of(prompted), negative)
