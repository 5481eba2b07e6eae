"""Save portrait video: write frames or a video to a file in the output folder, with the workflow inside."""

import json
import re
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import Input, io, ui
from torch import Tensor

from ..magicdistill_core.errors import VideoError
from ..magicdistill_core.media.video_writing import FORMATS, MP4, VideoWriter, frame_rate, video_writer
from .filename_prefix import check_codes, free_file, portable_prefix, shortened
from .reporting import report
from .run_record import recorded_drop
from .video_input import Clip, frames_clip, sound_of, video_clip

_FORMATS = {format.title: format for format in FORMATS if format.available}
_RECORD_TAG = "magicdistill"
_PREVIEW_CRF = 23
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


class SaveVideo(io.ComfyNode):
    """Node `MagicDistillSaveVideo`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillSaveVideo",
            display_name="Save portrait video",
            category="MagicDistillation/video",
            description="Saves frames or a video in the output folder as mp4, WebM, ProRes or animated WebP, with 8 or "
            "10 bits and with sound (WebP has none). The file contains the workflow: drop the file on the canvas to "
            "open it.",
            search_aliases=[
                "magicdistill",
                "save mp4",
                "video combine",
                "export video",
                "hevc",
                "webm",
                "prores",
                "webp",
            ],
            inputs=[
                io.MultiType.Input(
                    "video",
                    [io.Image, io.Video],
                    tooltip="The frames (IMAGE, from VAE Decode), or a VIDEO (from Load Video) with its own frame rate "
                    "and sound. A VIDEO of any length is read frame by frame. Width and height must be even, except "
                    "for WebP.",
                ),
                io.Float.Input(
                    "fps",
                    default=24.0,
                    min=1.0,
                    max=120.0,
                    step=0.001,
                    round=0.001,
                    tooltip="Frames per second of an IMAGE, from 1 to 120; a VIDEO keeps its own rate. Use the rate of "
                    "the model's training videos, which Load few-step model shows; a lower rate is slow motion. "
                    "23.976, 29.97 and 59.94 become the exact NTSC rates. Default: 24.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/portrait",
                    tooltip="Name of the file, with its subfolder of the output folder; a number is added to the name. "
                    "Codes such as %date:yyyy-MM-dd% and %MagicDistillSampler.seed% work. Paths outside the output "
                    "folder are refused.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(_FORMATS),
                    default=MP4.title,
                    tooltip="File type. mp4 (h264), the default, plays everywhere. 10-bit shows smoother gradients and "
                    "hevc makes smaller files, but not every player supports them. Use webm for web pages, ProRes for "
                    "editing, and WebP (no sound) where only pictures are allowed.",
                ),
                io.Float.Input(
                    "crf",
                    default=18.0,
                    min=0.0,
                    max=51.0,
                    step=1.0,
                    tooltip="Compression from 0 to 51 on h264's quality scale, for every format: 0 is nearly lossless, "
                    "18 (default) looks the same to the eye, 28 makes small files. ProRes has one quality and ignores "
                    "this setting.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Sound with 1, 2 or 6 channels, for example from Load Audio. It replaces the sound of a "
                    "VIDEO that is connected to the input video. Longer sound is cut at the end of the video; after "
                    "shorter sound the rest is silent. Not connected: a VIDEO keeps its own sound, and an IMAGE has "
                    "none.",
                ),
                io.String.Input(
                    "record",
                    optional=True,
                    force_input=True,
                    tooltip="The output named record of Few-step flow sampler: seed, sigmas, settings and the hash of "
                    "the model file, as text. It is stored in the video file as the tag magicdistill. Connect it to "
                    "look up later how the video was made. Not connected: the tag is left out.",
                ),
                io.Int.Input(
                    "drop_frames",
                    default=-1,
                    min=-1,
                    max=64,
                    optional=True,
                    tooltip="Number of first frames of an IMAGE to leave out, up to 64. -1 (default): the number in "
                    "the record, which is 4 for a HunyuanVideo-I2V concat model, as in its release, and 0 for others; "
                    "0 without a record. A VIDEO keeps all frames.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        # Checked before sampling starts. None: the text comes from another node and is not known yet.
        try:
            if filename_prefix is not None:
                portable_prefix(filename_prefix, datetime.now())
                check_codes(filename_prefix)
        except VideoError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        video: Tensor | Input.Video,
        fps: float,
        filename_prefix: str,
        format: str,
        crf: float,
        audio: Input.Audio | None = None,
        record: str | None = None,
        drop_frames: int = -1,
    ) -> io.NodeOutput:
        prefix, warnings = portable_prefix(filename_prefix, datetime.now())
        kind = _FORMATS[format]
        if isinstance(video, Tensor):
            dropped = recorded_drop(record) if drop_frames < 0 else drop_frames
            clip = frames_clip(video, frame_rate(fps), dropped)
        else:
            clip = video_clip(video, kind.deep)
            if drop_frames > 0:
                warnings.append("drop_frames is ignored: a VIDEO keeps all its frames.")
        sound = clip.audio if audio is None else sound_of(audio)
        if audio is not None and not torch.isfinite(audio["waveform"]).all():
            warnings.append("the sound contains NaN or infinite values: NaN is saved as silence.")
        if sound is not None and kind.audio_codec is None:
            warnings.append(f"{kind.title} holds no sound: the video is saved without it.")
        # ComfyUI's own writer does not state the colour matrix of the file, so players would have to guess it.
        try:
            folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
                prefix, folder_paths.get_output_directory(), clip.width, clip.height
            )
            tags = {} if args.disable_metadata else workflow_tags(cls.hidden, record)
            with ExitStack() as open_files:
                path = open_files.enter_context(free_file(Path(folder), name, counter, kind.suffix))
                file = path.name
                shown = ui.SavedResult(file, subfolder, io.FolderType.output)
                writers = [open_files.enter_context(video_writer(path, clip.rate, tags, crf, kind, sound))]
                if not kind.plays_anywhere:
                    shown = _preview_result(subfolder, file)
                    path = Path(folder_paths.get_temp_directory()) / shown.filename
                    writers.append(open_files.enter_context(video_writer(path, clip.rate, crf=_PREVIEW_CRF)))
                broken = _write(clip, writers)
        except OSError as error:
            raise VideoError(
                f"The video cannot be saved under {shortened(prefix)!r} ({error.strerror or error}). Check "
                f"that the name is not too long, that the disk has free space and that ComfyUI may write to its output "
                f"folder."
            ) from error
        warnings += clip.notes
        frames = writers[0].frames
        if broken:
            warnings.append(
                f"{broken} of {frames} frames contain NaN or infinite values; NaN and -inf are saved as black, inf as "
                f"white. The VAE or the model may overflow in fp16: run it in bf16 or fp32."
            )
        place = f"{subfolder}/{file}" if subfolder else file
        counted = "1 frame" if frames == 1 else f"{frames} frames"
        text = f"{place}: {counted} of {clip.width} x {clip.height}, {float(clip.rate):g} fps"
        saved = {"files": [ui.SavedResult(file, subfolder, io.FolderType.output)]}
        return io.NodeOutput(ui=ui.PreviewVideo([shown]).as_dict() | report(cls, text, warnings).as_dict() | saved)


def workflow_tags(hidden: io.HiddenHolder, record: str | None) -> dict[str, str]:
    """Return the record and the tags `prompt` and `workflow`, which the frontend reads from a dropped file.

    Args:
        hidden: the hidden inputs of the running node.
        record: the record of the run; None leaves it out.
    """
    values = dict(hidden.extra_pnginfo or {})
    if hidden.prompt is not None:
        values["prompt"] = hidden.prompt
    tags = {name: _json(value) for name, value in values.items()}
    return tags if record is None else tags | {_RECORD_TAG: record}


def _write(clip: Clip, writers: list[VideoWriter]) -> int:
    """Write every frame to every file; return the number of frames that contain NaN or infinite values."""
    bar = comfy.utils.ProgressBar(clip.total or 1)
    broken = 0
    for number, frame in enumerate(clip.frames, start=1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if frame.is_floating_point() and not torch.isfinite(frame).all():
            frame, broken = torch.nan_to_num(frame, nan=0.0), broken + 1
        for writer in writers:
            writer.add(frame)
        bar.update_absolute(number, clip.total or number)
    return broken


def _preview_result(subfolder: str, file: str) -> ui.SavedResult:
    """Name the preview in the temporary folder that the page shows for a format that not every browser plays."""
    name = "_".join([*Path(subfolder).parts, file])
    return ui.SavedResult(f"{name}{MP4.suffix}", "", io.FolderType.temp)


def _json(value: object) -> str:
    """Return JSON with escaped braces in strings: the frontend counts braces to find the end of a WebM tag."""

    def escaped(match: re.Match[str]) -> str:
        return match.group().replace("{", "\\u007b").replace("}", "\\u007d")

    return _JSON_STRING.sub(escaped, json.dumps(value))
