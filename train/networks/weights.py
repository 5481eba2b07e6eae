"""Files of weights as the commands take them: a whole transformer, or a LoRA with its base."""

import logging
from dataclasses import replace
from pathlib import Path

from magicdistill_core.branch import merge
from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.lora_file import is_lora, load_lora
from magicdistill_core.recipe import Recipe

logger = logging.getLogger(__name__)

# With it a user makes what `model.null_prompt` names.
ENCODE_PROMPT = "magicdistill encode-prompt PIPELINE --out {out} (PIPELINE: its release in diffusers' format)."


def load_weights(file: Path, base: Path | None = None, i2v_mode: str | None = None) -> Checkpoint:
    """A transformer that takes a start image; a LoRA is merged into its base at weight 1.

    Args:
        base: the file a LoRA is to be applied to.
        i2v_mode: how the start image enters, for weights that leave it open and a file that does not say it.

    Raises:
        CheckpointError: if a LoRA comes without its base, or a whole transformer with one; or if a file is damaged, of
            no known family, takes no start image, or leaves open how.
    """
    if not is_lora(file):
        if base is not None:
            raise CheckpointError(
                f"{file.name} is a whole transformer, so it needs no base. Leave the base out, or name a LoRA file."
            )
        checkpoint = load_checkpoint(file)
    elif base is None:
        raise CheckpointError(
            f"{file.name} is a LoRA and works only on its base, which was not named. Name the base's file as well "
            f"(--base)."
        )
    else:
        checkpoint = merge_lora(base, file)
    return checkpoint.teacher(i2v_mode)


def merge_lora(base: Path, lora_file: Path) -> Checkpoint:
    """The generator that a base and its generator LoRA are together, with the recipe of a whole generator.

    Raises:
        CheckpointError: if the LoRA was made for another base (by its sha256), is the fake branch of a training, or
            does not fit.
    """
    theta = load_checkpoint(base)
    lora = load_lora(lora_file, theta.shape.hidden)
    recipe = lora.recipe
    if recipe is not None:
        if recipe.kind not in ("generator_lora", "teacher_lora"):
            raise CheckpointError(
                f"{lora_file.name} is a {recipe.kind}, expected a generator_lora: a fake branch scores samples and "
                f"makes none. Use the LoRA of the generator."
            )
        wanted = recipe.base_hash
        if wanted is not None and wanted != (found := weights_sha256(base)):
            raise CheckpointError(
                f"{lora_file.name} belongs to a base with sha256 {wanted}, but {base.name} has {found}. "
                f"Use the file or the folder that the LoRA was trained on."
            )
    else:
        logger.warning("%s carries no recipe: whether %s is its base cannot be checked", lora_file.name, base.name)
    state = merge(theta.state, lora.branches, 1.0, lora_file.name)
    merged = None if recipe is None else whole_recipe(recipe)
    prompt = lora.null_prompt or theta.null_prompt
    return replace(theta, state=state, recipe=merged, null_prompt=prompt, source=f"{base.name} with {lora_file.name}")


def whole_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the generator (or of the fine-tuned teacher) that a merged LoRA gives."""
    cleared = {"base_hash": None, "base_kind": None, "lora_rank": None, "lora_alpha": None}
    return recipe.model_copy(update={"kind": recipe.kind.removesuffix("_lora"), **cleared})


def null_prompt_of(checkpoint: Checkpoint) -> NullPrompt:
    """The null prompt with which a checkpoint can be run without any text encoder.

    Raises:
        CheckpointError: if it carries none.
    """
    if checkpoint.null_prompt is None:
        raise CheckpointError(
            f"{checkpoint.source} carries no null prompt (null_prompt.text_states and null_prompt.pooled), and there "
            f"is no text encoder here. Use a file that MagicDistillation exported. For training, make one and name it "
            f"as model.null_prompt: {ENCODE_PROMPT.format(out='null_prompt.safetensors')}"
        )
    return checkpoint.null_prompt
