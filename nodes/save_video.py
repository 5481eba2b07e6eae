"""Save video: frames to an mp4 in the output folder, with the workflow inside."""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import io, ui
from torch import Tensor

from ..magicdistill_core.errors import VideoError
from ..magicdistill_core.video import write_video


class SaveVideo(io.ComfyNode):
    """Node `MagicDistillSaveVideo`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillSaveVideo",
            display_name="Save portrait video",
            category="MagicDistillation/video",
            description="Saves frames as an mp4 (h264, yuv420p) in the output folder. The workflow is inside: drop "
            "the file on the canvas to get it back.",
            search_aliases=["magicdistill", "save mp4", "video combine", "export video", "h264"],
            inputs=[
                io.Image.Input("images", tooltip="The frames in order; both sides even."),
                io.Float.Input(
                    "fps",
                    default=24.0,
                    min=1.0,
                    max=120.0,
                    step=1.0,
                    tooltip="Frames a second, 1 to 120. Use the rate the model was trained at (Load few-step model "
                    "shows it); lower is slow motion.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/portrait",
                    tooltip="Where in the output folder and under what name; a number is added. %date:yyyy-MM-dd% and "
                    "the like work. Folders outside of it are refused.",
                ),
                io.Float.Input(
                    "crf",
                    default=18.0,
                    min=0.0,
                    max=51.0,
                    step=1.0,
                    tooltip="h264 quality, 0 to 51: 0 is lossless, 18 looks the same to the eye, 28 is small. Raise "
                    "it for smaller files.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        # Before anything runs: nobody should wait for a video that cannot be saved. None comes from another node.
        try:
            if filename_prefix is not None:
                _check_prefix(filename_prefix)
        except VideoError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, images: Tensor, fps: float, filename_prefix: str, crf: float) -> io.NodeOutput:
        _check_prefix(filename_prefix)
        _, height, width, _ = images.shape
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        file = f"{name}_{counter:05}_.mp4"
        frames = (images[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8)
        # Not ComfyUI's own writer: it leaves out which colour matrix the file uses, so that players guess.
        write_video(Path(folder) / file, frames, fps, {} if args.disable_metadata else cls._tags(), crf)
        return io.NodeOutput(ui=ui.PreviewVideo([ui.SavedResult(file, subfolder, io.FolderType.output)]))

    @classmethod
    def _tags(cls) -> dict[str, str]:
        """`prompt` and `workflow`, each a tag of its own: what the frontend looks for in a dropped file."""
        tags = dict(cls.hidden.extra_pnginfo or {})
        if cls.hidden.prompt is not None:
            tags["prompt"] = cls.hidden.prompt
        return {name: json.dumps(value) for name, value in tags.items()}


def _check_prefix(prefix: str) -> None:
    """Refuse names that would leave the output folder, before a folder is made.

    Raises:
        VideoError: if the prefix is empty, absolute on any system, or climbs with `..`.
    """
    paths = (PurePosixPath(prefix), PureWindowsPath(prefix))
    if not prefix.strip() or any(path.is_absolute() or path.drive or ".." in path.parts for path in paths):
        raise VideoError(
            f"The filename prefix {prefix!r} does not stay inside ComfyUI's output folder. Use a name or a path below "
            f"it, such as video/portrait."
        )
