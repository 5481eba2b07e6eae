"""Save portrait video: frames or a video to a file in the output folder, with the workflow inside."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import Input, InputImpl, io, ui
from torch import Tensor

from ..magicdistill_core.errors import VideoError
from ..magicdistill_core.media.audio import Audio, read_audio, waveform_audio
from ..magicdistill_core.media.video import read_video
from ..magicdistill_core.media.video_writing import FORMATS, MP4, VideoWriter, frame_rate, video_writer
from .reporting import report

_FORMATS = {format.title: format for format in FORMATS if format.available}
_RECORD_TAG = "magicdistill"
_PREVIEW_CRF = 23
_SHOWN_PREFIX = 100
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


class _Clip(NamedTuple):
    """What is to be written: frames in one pass, how many if that is known, their rate and their own sound."""

    frames: Iterator[Tensor]
    total: int | None
    width: int
    height: int
    rate: Fraction
    audio: Audio | None


class SaveVideo(io.ComfyNode):
    """Node `MagicDistillSaveVideo`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillSaveVideo",
            display_name="Save portrait video",
            category="MagicDistillation/video",
            description="Saves frames or a video in the output folder: mp4, WebM, ProRes or animated WebP, 8 or 10 "
            "bits, with sound. The workflow is inside: drop the file on the canvas to get it back.",
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
                    tooltip="The frames in order (IMAGE), or a VIDEO with its own rate and sound, which is read frame "
                    "by frame, however long it is. Both sides even, except for WebP. Connect VAE Decode or Load Video.",
                ),
                io.Float.Input(
                    "fps",
                    default=24.0,
                    min=1.0,
                    max=120.0,
                    step=0.001,
                    round=0.001,
                    tooltip="Frames a second of an IMAGE, 1 to 120; a VIDEO keeps its own. Use the rate the model was "
                    "trained at (Load few-step model shows it); lower is slow motion. 23.976, 29.97 and 59.94 become "
                    "the exact NTSC rates.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/portrait",
                    tooltip="Where in the output folder and under what name; a number is added. %date:yyyy-MM-dd% and "
                    "the like work. Change it to sort your videos; folders outside of it are refused.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(_FORMATS),
                    default=MP4.title,
                    tooltip="Kind of file. mp4 (h264) plays everywhere. 10-bit keeps soft gradients, hevc is smaller; "
                    "not every player takes them. Choose webm for the web, ProRes for editing, WebP where only "
                    "pictures are allowed (no sound).",
                ),
                io.Float.Input(
                    "crf",
                    default=18.0,
                    min=0.0,
                    max=51.0,
                    step=1.0,
                    tooltip="Quality, 0 to 51, on h264's scale for every format: 0 is next to lossless, 18 looks the "
                    "same to the eye, 28 is small. Raise it for smaller files. ProRes has one quality and ignores it.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Sound, cut where the video ends. Replaces that of a VIDEO. 1, 2 or 6 channels.",
                ),
                io.String.Input(
                    "record",
                    optional=True,
                    force_input=True,
                    tooltip="The record of Few-step flow sampler: seed, sigmas, checkpoint hash and settings. It is "
                    "kept in the file as a tag of its own, magicdistill. Connect it to know later how a video was "
                    "made.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        # Before anything runs: nobody should wait for a video that cannot be saved. None comes from another node.
        try:
            if filename_prefix is not None:
                _check_prefix(filename_prefix)
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
    ) -> io.NodeOutput:
        _check_prefix(filename_prefix)
        kind, warnings = _FORMATS[format], []
        clip = _frames_clip(video, frame_rate(fps)) if isinstance(video, Tensor) else _video_clip(video, kind.deep)
        sound = clip.audio if audio is None else _sound(audio)
        if sound is not None and kind.audio_codec is None:
            warnings.append(f"{kind.title} holds no sound: it was left out.")
        # Not ComfyUI's own writer: it leaves out which colour matrix the file uses, so that players guess.
        try:
            folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
                filename_prefix, folder_paths.get_output_directory(), clip.width, clip.height
            )
            file = f"{name}_{counter:05}_{kind.suffix}"
            tags = {} if args.disable_metadata else cls._tags(record)
            shown = ui.SavedResult(file, subfolder, io.FolderType.output)
            with ExitStack() as open_files:
                path = Path(folder) / file
                writers = [open_files.enter_context(video_writer(path, clip.rate, tags, crf, kind, sound))]
                if not kind.plays_anywhere:
                    shown = _preview_result(subfolder, file)
                    path = Path(folder_paths.get_temp_directory()) / shown.filename
                    writers.append(open_files.enter_context(video_writer(path, clip.rate, crf=_PREVIEW_CRF)))
                broken = _write(clip, writers)
        except OSError as error:
            raise VideoError(
                f"The video cannot be saved under {_shortened(filename_prefix)!r} ({error.strerror or error}). Check "
                f"that the name is not too long, that the disk has room and that ComfyUI may write to its output "
                f"folder."
            ) from error
        frames = writers[0].frames
        if broken:
            warnings.append(
                f"{broken} of {frames} frames hold values that are no numbers (NaN), which were saved as black. A VAE "
                f"or a model in fp16 does that: run it in bf16 or fp32."
            )
        place = f"{subfolder}/{file}" if subfolder else file
        counted = "1 frame" if frames == 1 else f"{frames} frames"
        said = f"{place}: {counted} of {clip.width} x {clip.height}, {float(clip.rate):g} fps"
        saved = {"files": [ui.SavedResult(file, subfolder, io.FolderType.output)]}
        return io.NodeOutput(ui=ui.PreviewVideo([shown]).as_dict() | report(cls, said, warnings).as_dict() | saved)

    @classmethod
    def _tags(cls, record: str | None) -> dict[str, str]:
        """`prompt` and `workflow`, each a tag of its own: what the frontend looks for in a dropped file."""
        values = dict(cls.hidden.extra_pnginfo or {})
        if cls.hidden.prompt is not None:
            values["prompt"] = cls.hidden.prompt
        tags = {name: _json(value) for name, value in values.items()}
        return tags if record is None else tags | {_RECORD_TAG: record}


def _frames_clip(images: Tensor, rate: Fraction) -> _Clip:
    """An IMAGE as frames: RGB of RGBA, grey as RGB."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise VideoError(
            f"The frames have the shape {list(images.shape)}, expected an IMAGE [frames, height, width, 3]. Connect "
            f"the output of a VAE Decode or another node that gives images."
        )
    count, height, width, _ = images.shape
    frames = (image[..., :3].expand(height, width, 3) for image in images)
    return _Clip(frames, count, width, height, rate, None)


def _video_clip(video: Input.Video, deep: bool) -> _Clip:
    """A VIDEO as frames: of a file one after the other, at one rate; of tensors those that are there."""
    if not isinstance(video, InputImpl.VideoFromFile):
        parts = video.get_components()
        clip = _frames_clip(parts.images, frame_rate(parts.frame_rate))
        return clip if parts.audio is None else clip._replace(audio=_sound(parts.audio))
    source, (start, duration) = video.get_stream_source(), video.get_active_trim_window()
    rate = frame_rate(read_video(source, start=start, duration=duration).rate)
    # At a constant rate, also if the file's own is not: sound and picture stay together.
    opened = read_video(source, float(rate), start=start, duration=duration, deep=deep)
    first = next(opened.frames)
    height, width, _ = first.shape

    def frames() -> Iterator[Tensor]:
        yield first
        yield from opened.frames

    return _Clip(frames(), opened.count, width, height, rate, read_audio(source, opened.start, duration))


def _sound(audio: Input.Audio) -> Audio:
    """An AUDIO for the writer."""
    return waveform_audio(audio["waveform"], int(audio["sample_rate"]))


def _write(clip: _Clip, writers: list[VideoWriter]) -> int:
    """Write every frame to every file; how many held values that are no numbers."""
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
    """A name in the temporary folder for what the page shows in place of a file that not every browser plays."""
    name = "_".join([*Path(subfolder).parts, file])
    return ui.SavedResult(f"{name}{MP4.suffix}", "", io.FolderType.temp)


def _json(value: object) -> str:
    """JSON without braces inside its strings: the page finds the end of a WebM's tag by counting them."""

    def escaped(match: re.Match[str]) -> str:
        return match.group().replace("{", "\\u007b").replace("}", "\\u007d")

    return _JSON_STRING.sub(escaped, json.dumps(value))


def _shortened(prefix: str) -> str:
    return prefix if len(prefix) <= _SHOWN_PREFIX else f"{prefix[:_SHOWN_PREFIX]}..."


def _check_prefix(prefix: str) -> None:
    """Refuse names that would leave the output folder, before a folder is made.

    Raises:
        VideoError: if the prefix is empty, absolute on any system, climbs with `..`, or cannot be shown.
    """
    paths = (PurePosixPath(prefix), PureWindowsPath(prefix))
    named = bool(prefix.strip() and paths[0].parts) and prefix.isprintable()
    if not named or any(path.is_absolute() or path.drive or ".." in path.parts for path in paths):
        raise VideoError(
            f"The filename prefix {_shortened(prefix)!r} does not stay inside ComfyUI's output folder. Use a name or a "
            f"path below it, such as video/portrait."
        )
