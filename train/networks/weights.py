"""Reading the weights that a command names: a complete transformer, or a LoRA with its base.

A *recipe* (`magicdistill_core.recipe`) is stored in a model file. It states the sampling settings and the origin of the
weights. A *null prompt* is the text conditioning for sampling without a prompt.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from magicdistill_core.branch import merge
from magicdistill_core.checkpoint import Checkpoint, load_checkpoint
from magicdistill_core.errors import CheckpointError
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.layouts.modules import listing
from magicdistill_core.lora_file import is_lora, load_lora, load_lora_for
from magicdistill_core.recipe import Recipe

logger = logging.getLogger(__name__)

# The command that writes the file for `model.null_prompt`.
ENCODE_PROMPT = "magicdistill encode-prompt PIPELINE --out {out} (PIPELINE: its release in diffusers' format)."


def load_weights(file: Path, base: Path | None = None, i2v_mode: str | None = None) -> Checkpoint:
    """Load an image-to-video transformer. A LoRA is merged into its base at weight 1.

    Args:
        file: a complete transformer (model file or diffusers folder), or a LoRA file.
        base: the model file or diffusers folder on which the LoRA was trained; None for a complete transformer.
        i2v_mode: how the start image enters (`concat` or `token_replace`), if neither the weights nor their file state
            it; else None.

    Raises:
        CheckpointError: if a LoRA comes without a base or a complete transformer with one; if a file is damaged or of
            no known family; or if the transformer takes no start image, or it is unknown how.
    """
    if not is_lora(file):
        if base is not None:
            raise CheckpointError(
                f"{file.name} is a complete transformer, so it needs no base. Leave the base out, or name a LoRA file."
            )
        checkpoint = load_checkpoint(file)
    elif base is None:
        raise CheckpointError(
            f"{file.name} is a LoRA and works only on its base, but no base was named. Name the base's file too "
            f"(--base)."
        )
    else:
        checkpoint = merge_lora(base, file)
    return checkpoint.teacher(i2v_mode)


def load_weights_on(file: Path, base: Path) -> Checkpoint:
    """Load a complete transformer, or a LoRA merged into a base; see `load_weights`.

    Args:
        file: the transformer or the LoRA.
        base: the model file to which a LoRA belongs; no effect for a complete transformer.
    """
    return load_weights(file, base if is_lora(file) else None)


def merge_lora(base: Path, lora_file: Path, teacher_loras: Sequence[tuple[Path, float]] = ()) -> Checkpoint:
    """Return the weights of a base with a generator LoRA merged into it at weight 1.

    The result has the recipe of a complete generator, or of a complete teacher for the LoRA of a fine-tuned teacher. A
    LoRA without a recipe is merged too, with a warning; the result then has no recipe.

    Args:
        base: model file or diffusers folder on which the LoRA was trained.
        lora_file: the LoRA.
        teacher_loras: files and weights of the LoRAs that the training merged into the base first.

    Raises:
        CheckpointError: if the LoRA belongs to a base with another sha256, is the fake branch of a training, or does
            not fit the base.
    """
    theta = load_checkpoint(base)
    lora = load_lora(lora_file, theta.shape.hidden)
    recipe = lora.recipe
    if recipe is not None:
        if recipe.kind not in ("generator_lora", "teacher_lora"):
            why = " A fake branch only scores samples and cannot generate them." if recipe.kind == "fake_lora" else ""
            raise CheckpointError(
                f"{lora_file.name} has a recipe of kind {recipe.kind}, expected generator_lora or teacher_lora.{why} "
                f"Use the LoRA of a generator or of a fine-tuned teacher."
            )
        expected = recipe.base_hash
        if expected is not None and expected != (found := weights_sha256(base)):
            # The hash of a folder covers other bytes than that of a file, even with equal weights.
            kind = "folder" if recipe.base_kind == "folder" else "file"
            given = "folder" if base.is_dir() else "file"
            differ = "" if kind == given else f" (a {kind} and a {given} never have the same sha256)"
            raise CheckpointError(
                f"{lora_file.name} belongs to a base {kind} with sha256 {expected}, but the {given} {base.name} has "
                f"{found}{differ}. Use the {kind} that the LoRA was trained on."
            )
    if recipe is None or recipe.base_hash is None:
        lacking = "no recipe" if recipe is None else "a recipe without the base's sha256"
        logger.warning("%s has %s, so it cannot be checked whether %s is its base", lora_file.name, lacking, base.name)
    named = [] if recipe is None else [f"{each.name} at {each.weight:g}" for each in recipe.teacher_loras]
    if named and not teacher_loras:
        logger.warning(
            "%s was trained on %s with %s. Without these LoRAs its samples differ from those of the training",
            lora_file.name,
            base.name,
            " and ".join(named),
        )
    for file, weight in teacher_loras:
        theta = with_teacher_lora(theta, file, weight)
    state = merge(theta.state, lora.branches, 1.0, lora_file.name)
    merged = None if recipe is None else whole_recipe(recipe)
    # Without a recipe of the LoRA, the merged weights still take the start image as the base does.
    mode = theta.i2v_mode if theta.recipe is None else theta.recipe.i2v_mode
    prompt = lora.null_prompt or theta.null_prompt
    source = f"{base.name} with {lora_file.name}"
    captions = lora.captions or theta.captions
    return replace(
        theta, state=state, recipe=merged, null_prompt=prompt, source=source, i2v_mode=mode, captions=captions
    )


def with_teacher_lora(teacher: Checkpoint, lora_file: Path, weight: float) -> Checkpoint:
    """Return a teacher with a LoRA merged into it, such as a style or an identity.

    Modules of the LoRA that the teacher does not have, such as those of a text encoder, are left out with a warning.

    Args:
        teacher: the teacher's weights, also on `meta`.
        lora_file: the LoRA, of any known dialect.
        weight: factor of the LoRA's change.

    Raises:
        CheckpointError: if the file is no LoRA, is damaged, or is for another model; or if it is a few-step generator
            or a fake branch, with which the teacher would be no teacher.
    """
    lora = load_lora_for(teacher.architecture, lora_file, teacher.shape.hidden)
    if lora.recipe is not None and lora.recipe.kind != "teacher_lora":
        raise CheckpointError(
            f"{lora_file.name} has a recipe of kind {lora.recipe.kind}. A LoRA of a teacher must keep it a model of "
            "many steps. Remove it from model.teacher_loras; use LoRAs of a style, of a person, or of `sft`."
        )
    if lora.misses:
        logger.warning(
            "Modules of %s are left out, because %s has none that they fit: %s",
            lora_file.name,
            teacher.source,
            listing([*lora.misses], 3),
        )
    state = merge(teacher.state, lora.branches, weight, lora_file.name)
    for key, difference in lora.differences.items():
        base = state[key]
        state[key] = (base.float() + weight * difference.float().to(base.device)).to(base.dtype)
    return replace(
        teacher,
        state=state,
        null_prompt=lora.null_prompt or teacher.null_prompt,
        captions=lora.captions or teacher.captions,
        source=f"{teacher.source} with {lora_file.name}",
    )


def whole_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of a merged LoRA: that of a complete generator, or of a complete fine-tuned teacher.

    Args:
        recipe: the LoRA's recipe, of kind `generator_lora` or `teacher_lora`.
    """
    cleared = dict.fromkeys(
        ("base_hash", "base_kind", "lora_rank", "lora_alpha", "lora_error", "lora_velocity_error"), None
    )
    return recipe.model_copy(update={"kind": recipe.kind.removesuffix("_lora"), **cleared})


def null_prompt_of(checkpoint: Checkpoint) -> NullPrompt:
    """Return the null prompt of a checkpoint, with which it runs without a text encoder.

    Raises:
        CheckpointError: if the checkpoint has none.
    """
    if checkpoint.null_prompt is None:
        raise CheckpointError(
            f"{checkpoint.source} carries no null prompt (null_prompt.text_states and null_prompt.pooled), and no text "
            f"encoder is loaded. Use a file that MagicDistillation exported. For training, make a null prompt and name "
            f"it as model.null_prompt: {ENCODE_PROMPT.format(out='null_prompt.safetensors')}"
        )
    return checkpoint.null_prompt
