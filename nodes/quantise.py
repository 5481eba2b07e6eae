"""Quantise to int8: write an int8 copy of a diffusion model, half as large, that every loader reads."""

import os
from pathlib import Path, PurePath

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..magicdistill_core.errors import CheckpointError
from ..magicdistill_core.quantise import quantise_file
from .file_hash import file_stamp
from .reporting import report

_FOLDER = "diffusion_models"
_SUFFIX = "_int8.safetensors"


class Quantise(io.ComfyNode):
    """Node `MagicDistillQuantise`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillQuantise",
            display_name="Quantise to int8",
            category="MagicDistillation/loaders",
            description="Writes an int8 copy of a diffusion model in ComfyUI's own format. It needs about half the "
            "disk space and memory of a bf16 file and keeps the recipe and the null prompt. Run this once per file, "
            "then load the new file with this pack's loader or a stock loader.",
            search_aliases=["magicdistill", "quantize", "int8", "q8", "compress model", "less vram", "half memory"],
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=folder_paths.get_filename_list(_FOLDER),
                    tooltip="The model file, from models/diffusion_models: a HunyuanVideo or Wan 2.1 transformer in "
                    "bf16, fp16 or fp32. The result is output/diffusion_models/<name>_int8.safetensors and replaces "
                    "an older file of that name. Press R to refresh the lists; then all loaders list it.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, unet_name: str | None = None) -> tuple[int, int]:
        return file_stamp(_FOLDER, unet_name)

    @classmethod
    def execute(cls, unet_name: str) -> io.NodeOutput:
        source = folder_paths.get_full_path_or_raise(_FOLDER, unet_name)
        target = _target(unet_name)
        bar = comfy.utils.ProgressBar(1)

        def progress(done: int, layers: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, layers)

        try:
            done = quantise_file(source, target, progress)
        except OSError as error:
            raise CheckpointError(
                f"{target} cannot be written ({error.strerror or error}). Check that the disk has free space and that "
                f"ComfyUI may write to its output folder."
            ) from error
        text = f"{target.name}: {done.summary()}\nsaved in output/{_FOLDER}: press R, then choose it in a loader"
        return io.NodeOutput(ui=report(cls, text, []))


def _target(unet_name: str) -> Path:
    """Return the path of the int8 copy, in the part of the output folder that ComfyUI itself lists as models."""
    # Normalise the name as folder_paths does: it cannot leave the folder.
    name = PurePath(os.path.relpath(os.path.join("/", unet_name), "/"))
    return Path(folder_paths.get_output_directory(), _FOLDER, name.with_name(f"{name.stem}{_SUFFIX}"))
