"""The teacher of a configuration, prepared for the configured method."""

from dataclasses import dataclass, replace
from pathlib import Path

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.null_prompt import load_null_prompt, prompt_file_template
from magicdistill_core.pocket.files import TEACHER
from magicdistill_core.prompt_templates import PromptTemplate

from ..config.training import POCKET, TrainConfig
from ..networks.weights import null_prompt_of, with_teacher_lora


@dataclass(frozen=True)
class Teacher:
    """The teacher's weights and prompts.

    Attributes:
        checkpoint: the weights, prepared for the method: for example with a new guidance embedding.
        prompt: the null prompt: that of conditional calls, unless the samples have captions.
        negative: the prompt of unconditional calls; None if the method makes none.
        prompt_template: how `prompt` was encoded, if its file states it; else None.
    """

    checkpoint: Checkpoint
    prompt: NullPrompt
    negative: NullPrompt | None
    prompt_template: PromptTemplate | None


def teacher_path(config: TrainConfig) -> Path:
    """Return the path of the teacher's weights: a model file or a diffusers folder."""
    return TEACHER if config.model.teacher == POCKET else Path(config.model.teacher)


def load_teacher(config: TrainConfig, device: str = "cpu") -> Teacher:
    """Load the teacher and its prompts, and prepare the weights for the method.

    Args:
        config: the training's configuration.
        device: the device of the weights; `meta` loads only their shapes.

    Raises:
        CheckpointError: if a file is missing or damaged, the weights are unusable as a teacher, or there is no null
            prompt.
        ConfigError: if the method does not suit the teacher.
    """
    model = config.model
    weights = load_checkpoint(teacher_path(config), device)
    for lora in model.teacher_loras:
        weights = with_teacher_lora(weights, lora.file, lora.weight)
    checkpoint = config.method.prepared(weights, model.mode).teacher(model.i2v_mode)
    architecture = checkpoint.architecture.name
    prompted, template = checkpoint, None if checkpoint.recipe is None else checkpoint.recipe.prompt_template
    if model.null_prompt is not None:
        prompted = replace(checkpoint, null_prompt=load_null_prompt(model.null_prompt, architecture))
        template = prompt_file_template(model.null_prompt)
    prompt, negative = null_prompt_of(prompted), None
    if config.method.uses_negative_prompt:
        # With captions, guidance moves away from the empty text unless another one is named.
        negative = prompt if model.negative_prompt is None else load_null_prompt(model.negative_prompt, architecture)
    return Teacher(checkpoint, prompt, negative, template)
