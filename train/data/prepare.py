"""Preparation of a latent dataset from videos: decode, resample, cut into windows, resize and crop, encode.

An interrupted preparation continues when it is started again.
"""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from magicdistill_core.errors import VideoError
from magicdistill_core.geometry import check_geometry, frames_to_unit
from magicdistill_core.hashes import weights_sha256

from .dataset_index import DatasetIndex, StoredDtype
from .dataset_writer import LatentWriter
from .start_images import StartImageEncoder, load_start_images
from .vae import load_vae
from .windows import WindowGeometry, windows

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".gif", ".m2t", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)


@dataclass
class PrepareReport:
    """The result of a preparation.

    Attributes:
        added: number of samples that this preparation added.
        total: number of samples that the dataset now has.
        already_in: number of videos that an earlier preparation finished.
        skipped: the reason for each video that could not be used completely, by the video's name.
    """

    added: int = 0
    total: int = 0
    already_in: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


def prepare(
    videos: Path,
    out: Path,
    vae: Path,
    frames: int = 17,
    height: int = 96,
    width: int = 96,
    fps: float = 24.0,
    stride: int | None = None,
    dtype: StoredDtype = "float16",
    device: torch.device | str = "cpu",
    console: Console | None = None,
    image_encoder: Path | None = None,
) -> PrepareReport:
    """Encode every usable window of every video into the latent dataset `out`.

    Running it again on the same folders continues, and does not decode finished videos again. A video that is damaged
    or too short is reported. Its windows before the damage are kept, and the next preparation tries it again.

    Args:
        videos: a video file, or a folder; its subfolders are searched too.
        out: the dataset's folder, which is created or continued.
        vae: a VAE as for `load_vae`.
        frames: frames of a window, 4n + 1.
        height: height of a window in pixels, a multiple of 16.
        width: width of a window in pixels, a multiple of 16.
        fps: frame rate in frames per second, to which videos are resampled before they are cut.
        stride: frames from the start of one window to the start of the next; None is `frames`, no overlap.
        dtype: format of the stored latents.
        device: device of the VAE and the image encoder.
        console: shows the progress bar; None shows none.
        image_encoder: CLIP's folder, for a family that uses its features (see `load_start_images`); None for the
            others.

    Returns:
        The numbers of samples and videos, and the skipped videos.

    Raises:
        MagicDistillError: if there are no videos, none is usable, the geometry does not fit, or `out` holds a dataset
            with other settings.
    """
    check_geometry(frames, height, width)
    geometry = WindowGeometry(frames, height, width, fps, frames if stride is None else stride)
    if geometry.stride < 1 or not fps > 0:
        raise VideoError(
            f"stride is {stride} and fps is {fps}. Expected a stride of at least 1 frame and a positive fps."
        )
    sources = find_videos(videos)
    encoder = load_start_images(load_vae(vae, device), image_encoder, device)
    index = DatasetIndex(
        **asdict(geometry),
        family=encoder.vae.architecture,
        dtype=dtype,
        vae_sha256=weights_sha256(vae),
        image_encoder_sha256=None if image_encoder is None else weights_sha256(image_encoder),
    )
    report = PrepareReport()
    with LatentWriter(out, index) as writer, _progress(console) as progress:
        task = progress.add_task("Preparing", total=len(sources), note="")
        for name, path in sources.items():
            progress.update(task, note=name)
            if writer.finished(name):
                report.already_in += 1
            else:
                _add_source(writer, encoder, name, path, geometry, device, report)
            progress.advance(task)
        report.total = len(writer)
    if not report.total:
        reasons = "; ".join(report.skipped.values())
        raise VideoError(f"None of the {len(sources)} videos in {videos} could be used: {reasons}")
    return report


def find_videos(videos: Path) -> dict[str, Path]:
    """Return the paths of the videos in a folder and its subfolders, by their names relative to the folder, sorted.

    Args:
        videos: the folder, or a single video file, which is returned under its own name.

    Raises:
        VideoError: if there is no video.
    """
    if videos.is_file():
        return {videos.name: videos}
    if not videos.is_dir():
        raise VideoError(f"{videos} does not exist. Expected a folder of videos, or one video.")
    found = sorted(p for p in videos.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
    if not found:
        raise VideoError(
            f"The folder {videos} holds no video (files named {', '.join(sorted(VIDEO_SUFFIXES))}). Check the path."
        )
    return {path.relative_to(videos).as_posix(): path for path in found}


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=console is None,
    )


def _add_source(
    writer: LatentWriter,
    encoder: StartImageEncoder,
    name: str,
    path: Path,
    geometry: WindowGeometry,
    device: torch.device | str,
    report: PrepareReport,
) -> None:
    try:
        for start, window in windows(path, geometry):
            key = f"{name}#{start}"
            if key in writer:
                continue
            unit = frames_to_unit(window).to(device)
            writer.append(key, encoder.vae.encode(unit)[0], encoder.encode(unit[:, 0], geometry.frames))
            report.added += 1
    except VideoError as error:
        report.skipped[name] = str(error)
        logger.warning("skipped: %s", error)
    else:
        writer.finish_source(name)
