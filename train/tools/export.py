"""What a run has trained, as a file for somebody else: ComfyUI, a LoRA loader, or diffusers."""

import shutil
from pathlib import Path
from typing import Literal

import torch

from magicdistill_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from magicdistill_core.diffusers_folder import COMPANION
from magicdistill_core.errors import CheckpointError
from magicdistill_core.null_prompt import null_prompt_tensors
from magicdistill_core.quantise import Quantised, save_quantised
from magicdistill_core.safetensors_file import explained_writing, read_tensors, write_safetensors

from ..networks.network import load_network
from ..networks.weights import merge_lora
from ..run_folder import GENERATOR_FILE, GENERATOR_LORA_FILE, RunFacts, checkpoint_folder, run_facts

ExportFormat = Literal["comfyui", "int8", "lora", "diffusers"]


def export_run(
    run: Path,
    out: Path,
    format: ExportFormat = "comfyui",
    update: int | None = None,
    dtype: torch.dtype | None = None,
    teacher: Path | None = None,
) -> Quantised | None:
    """Export a run's generator.

    Args:
        run: the folder of a training run.
        out: a `.safetensors` file, or for diffusers a folder that does not exist yet.
        format: `comfyui` is one file in the file layout with recipe and null prompt, a LoRA being merged into the
            teacher at weight 1; `int8` is the same with its blocks' matrices rounded, for ComfyUI alone; `lora` is
            the generator LoRA alone; `diffusers` is a transformer folder for `from_pretrained` of the family's class.
        update: which checkpoint; None means the newest.
        dtype: of the stored weights; None keeps what the run stored.
        teacher: for a LoRA run whose teacher's file has moved: where it is now.

    Returns:
        For `int8`: what the rounding did.

    Raises:
        CheckpointError: if the run, the checkpoint or the teacher is absent or damaged, the teacher is another file
            than the one trained on, the format does not exist for the run's mode, or `out` cannot be used.
    """
    _check_target(out, format)
    facts = run_facts(run)
    folder = checkpoint_folder(run, update)
    if format == "lora":
        _export_lora(run, folder, facts, out, dtype)
        return None
    generator = _whole_generator(folder, facts, teacher)
    if generator.recipe is None or generator.recipe.kind not in ("generator", "teacher"):
        found = "no recipe" if generator.recipe is None else f"the recipe of a {generator.recipe.kind}"
        raise CheckpointError(
            f"{generator.source} of {folder.name} carries {found}, expected that of a generator. It was not written "
            f"by a training run: use another checkpoint."
        )
    if format == "int8":
        with explained_writing(out):
            return save_quantised(out, generator, dtype)
    if format == "comfyui":
        save_checkpoint(out, generator.state, generator.recipe, generator.null_prompt, dtype)
    else:
        _export_diffusers(generator, out, dtype)
    return None


def _check_target(out: Path, format: ExportFormat) -> None:
    if format == "diffusers":
        if out.exists():
            raise CheckpointError(f"{out} exists already. Name a new folder for the diffusers export, or remove it.")
    elif out.suffix != ".safetensors":
        raise CheckpointError(f"The export is to be written as {out.name}, expected a name that ends in .safetensors.")


def _whole_generator(folder: Path, facts: RunFacts, teacher: Path | None) -> Checkpoint:
    if facts.mode == "full":
        return load_checkpoint(folder / GENERATOR_FILE)
    base = teacher or facts.teacher
    if not base.exists():
        raise CheckpointError(
            f"The teacher {base}, which the LoRA is to be merged into, is not there. Say where it is now (--teacher), "
            f"or export with --format lora."
        )
    return merge_lora(base, folder / GENERATOR_LORA_FILE)


def _export_lora(run: Path, folder: Path, facts: RunFacts, out: Path, dtype: torch.dtype | None) -> None:
    if facts.mode != "lora":
        raise CheckpointError(
            f"{run} trained a full copy of the teacher, so there is no generator LoRA to export. Use --format comfyui, "
            f"or train with model.mode=lora."
        )
    tensors, metadata = read_tensors(folder / GENERATOR_LORA_FILE)
    if dtype is not None:
        # Alphas and the null prompt are no weights.
        tensors = {key: value.to(dtype) if ".lora_" in key else value for key, value in tensors.items()}
    write_safetensors(out, tensors, metadata)


def _export_diffusers(generator: Checkpoint, out: Path, dtype: torch.dtype | None) -> None:
    stored = generator.state[generator.architecture.file_mark].dtype
    network = load_network(generator, dtype or stored)
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with explained_writing(out):
            network.save_pretrained(temporary)
            mode = (temporary / "config.json").stat().st_mode
            for file in temporary.glob("*.safetensors"):
                file.chmod(mode)  # safetensors leaves its files to their owner alone
        assert generator.recipe is not None
        tensors = null_prompt_tensors(generator.null_prompt)
        write_safetensors(temporary / COMPANION, tensors, generator.recipe.to_metadata())
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
