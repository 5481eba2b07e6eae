"""Export the generator of a run for ComfyUI, for LoRA loaders or for diffusers.

A *recipe* is the sampling settings and the origin of the weights. A *null prompt* is the text conditioning for sampling
without a prompt. Exports store both, and the captions of the training if there are few.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Literal

import torch

from magicdistill_core.captions import caption_tensors
from magicdistill_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from magicdistill_core.diffusers_folder import COMPANION
from magicdistill_core.errors import CheckpointError
from magicdistill_core.null_prompt import null_prompt_tensors
from magicdistill_core.quantise import Quantised, save_quantised
from magicdistill_core.safetensors_file import explained_writing, read_tensors, write_safetensors
from magicdistill_core.writable import check_output_file, check_output_folder

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
    """Write a run's generator to a file or folder.

    Args:
        run: the folder of a training run.
        out: a `.safetensors` file; for `diffusers` a folder that does not exist yet.
        format: one of four formats.
            `comfyui`: one file in the file layout, with recipe, null prompt and captions. A generator LoRA is merged
                into the teacher at weight 1.
            `int8`: the same file with the matrices of the blocks quantised to int8, in ComfyUI's format.
            `lora`: only the generator LoRA.
            `diffusers`: a transformer folder for `from_pretrained` of the family's class.
        update: the update of the checkpoint to export; None means the newest.
        dtype: data type of the stored weights; None keeps the run's. For `int8` that of the weights that are not
            quantised.
        teacher: model file or diffusers folder of a LoRA run's teacher, if it has moved; None takes the path in
            `run.json`.

    Returns:
        For `int8` the statistics of the quantisation, else None.

    Raises:
        CheckpointError: if the run, the checkpoint or the teacher is missing or damaged, if the teacher is not the file
            used for training, if a teacher is named that the export does not need, if the format does not exist for
            the run's mode, or if `out` has a wrong name.
        OutputError: if `out` cannot be written.
    """
    _check_target(out, format)
    facts = run_facts(run)
    if teacher is not None and (facts.mode == "full" or format == "lora"):
        why = "its run trained all weights" if facts.mode == "full" else "--format lora writes only the LoRA"
        raise CheckpointError(f"The export of {run} needs no teacher, because {why}. Leave out --teacher.")
    folder = checkpoint_folder(run, update)
    if format == "lora":
        _export_lora(run, folder, facts, out, dtype)
        return None
    generator = _load_generator(folder, facts, teacher)
    if generator.recipe is None or generator.recipe.kind not in ("generator", "teacher"):
        found = "no recipe" if generator.recipe is None else f"a recipe of kind {generator.recipe.kind}"
        raise CheckpointError(
            f"{generator.source} of {folder.name} has {found}. Expected the recipe of a generator. The file was not "
            f"written by a training run. Use another checkpoint."
        )
    if format == "int8":
        with explained_writing(out):
            return save_quantised(out, generator, dtype)
    if format == "comfyui":
        save_checkpoint(
            out, generator.state, generator.recipe, generator.null_prompt, dtype, captions=generator.captions
        )
    else:
        _export_diffusers(generator, out, dtype)
    return None


def _check_target(out: Path, format: ExportFormat) -> None:
    if format == "diffusers":
        if out.exists():
            raise CheckpointError(
                f"{out} exists already. Choose a new folder for the diffusers export, or remove this one."
            )
        check_output_folder(out)
        return
    if out.suffix != ".safetensors":
        raise CheckpointError(f"The export's file name is {out.name}. Expected a name that ends in .safetensors.")
    check_output_file(out)


def _load_generator(folder: Path, facts: RunFacts, teacher: Path | None) -> Checkpoint:
    if facts.mode == "full":
        return load_checkpoint(folder / GENERATOR_FILE)
    base = teacher or facts.teacher
    if not base.exists():
        raise CheckpointError(
            f"The teacher {base} does not exist. The export merges the LoRA into it. Name the teacher's file with "
            f"--teacher, or export with --format lora."
        )
    if lost := [file for file, _ in facts.teacher_loras if not file.exists()]:
        raise CheckpointError(
            f"The LoRA {lost[0]} does not exist. The training merged it into the teacher, and the export does so too. "
            "Put the file back, or export with --format lora."
        )
    return merge_lora(base, folder / GENERATOR_LORA_FILE, facts.teacher_loras)


def _export_lora(run: Path, folder: Path, facts: RunFacts, out: Path, dtype: torch.dtype | None) -> None:
    if facts.mode != "lora":
        raise CheckpointError(
            f"The run {run} has no generator LoRA, because it trained all weights (model.mode=full). Use --format "
            f"comfyui, or train with model.mode=lora."
        )
    tensors, metadata = read_tensors(folder / GENERATOR_LORA_FILE)
    if dtype is not None:
        # Only LoRA matrices are weights; alphas and texts keep their dtype.
        tensors = {key: value.to(dtype) if ".lora_" in key else value for key, value in tensors.items()}
    write_safetensors(out, tensors, metadata)


def _export_diffusers(generator: Checkpoint, out: Path, dtype: torch.dtype | None) -> None:
    stored = generator.state[generator.architecture.file_mark].dtype
    network = load_network(generator, dtype or stored)
    out.parent.mkdir(parents=True, exist_ok=True)
    # A name that no other export uses, with the rights of a folder that the user makes.
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent)) / "export"
    try:
        with explained_writing(out):
            network.save_pretrained(temporary)
            mode = (temporary / "config.json").stat().st_mode
            for file in temporary.glob("*.safetensors"):
                file.chmod(mode)  # safetensors makes files that only their owner can read
        assert generator.recipe is not None
        tensors = null_prompt_tensors(generator.null_prompt) | caption_tensors(generator.captions)
        write_safetensors(temporary / COMPANION, tensors, generator.recipe.to_metadata())
        with explained_writing(out):
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)
