"""Preparation of a latent dataset from videos: decode, resample, cut into windows, resize and crop, encode.

An interrupted preparation continues when it is started again.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from magicdistill_core.errors import MagicDistillError, VideoError, cause
from magicdistill_core.families.base import StartImage
from magicdistill_core.geometry import check_geometry, frames_to_unit
from magicdistill_core.hashes import weights_sha256

from ..console import progress_bar
from ..folder_lock import folder_lock
from ..signals import StopRequest
from .contents import Source
from .dataset_index import DatasetIndex, StoredDtype
from .dataset_writer import LatentWriter, NotFiniteError
from .skipped import by_reason
from .start_images import StartImageEncoder, load_start_images
from .vae import load_vae
from .videos import find_videos
from .windows import WindowGeometry, windows

logger = logging.getLogger(__name__)


@dataclass
class PrepareReport:
    """The result of a preparation.

    Attributes:
        added: number of samples that this preparation added.
        total: number of samples that the dataset now has.
        already_in: number of videos that an earlier preparation finished, also under another name.
        skipped: the reason for each video that could not be used completely, by the video's name.
        stopped_by: the name of the signal that stopped the preparation; None if it finished.
    """

    added: int = 0
    total: int = 0
    already_in: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    stopped_by: str | None = None


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

    Running it again on the same folders continues, and does not decode finished videos again. Videos are known by their
    contents, not by their names. A video that cannot be used, for whatever reason, is reported. Its windows before the
    damage are kept, and the next preparation tries it again. A signal (see `signals.py`) ends the preparation after the
    current window; all windows so far are stored.

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
        MagicDistillError: if there are no videos, none is usable, the geometry does not fit, `out` cannot be written,
            is in use by another process, or holds a dataset with other settings; or the GPU fails.
    """
    check_geometry(frames, height, width)
    geometry = WindowGeometry(frames, height, width, fps, frames if stride is None else stride)
    if geometry.stride < 1 or not 0 < fps < math.inf:
        raise VideoError(
            f"stride is {stride} and fps is {fps}. Expected a stride of at least 1 frame and a positive fps."
        )
    sources = find_videos(videos)
    report = PrepareReport()
    with folder_lock(out, "magicdistill prepare"):
        encoder = load_start_images(load_vae(vae, device), image_encoder, device)
        index = DatasetIndex(
            **asdict(geometry),
            family=encoder.vae.architecture,
            dtype=dtype,
            vae_sha256=weights_sha256(vae),
            image_encoder_sha256=None if image_encoder is None else weights_sha256(image_encoder),
        )
        with (
            StopRequest("The preparation ends after this window and keeps all windows so far") as stop,
            LatentWriter(out, index) as writer,
            _progress(console) as progress,
        ):
            task = progress.add_task("Preparing", total=len(sources), note="")
            preparation = _Preparation(writer, encoder, geometry, device, sources, report, stop)
            for name, path in sources.items():
                if stop.name:
                    break
                progress.update(task, note=name)
                try:
                    preparation.add(name, path)
                except VideoError as error:
                    report.skipped[name] = str(error)
                    logger.warning("skipped: %s", error)
                if not stop.name:
                    progress.advance(task)
            report.total, report.stopped_by = len(writer), stop.name
    if not report.total and not report.stopped_by:
        reasons = " ".join(by_reason(report.skipped))
        raise VideoError(f"None of the {len(sources)} videos in {videos} could be used. {reasons}")
    return report


def _progress(console: Console | None) -> Progress:
    return progress_bar(console, disable=console is None)


@dataclass(frozen=True)
class _Preparation:
    writer: LatentWriter
    encoder: StartImageEncoder
    geometry: WindowGeometry
    device: torch.device | str
    sources: Mapping[str, Path]
    report: PrepareReport
    stop: StopRequest

    def add(self, name: str, path: Path) -> None:
        """Add the windows of a video that are not in the dataset.

        Raises:
            VideoError: if a part of the video cannot be used; its other windows are added.
        """
        with _as_video_errors(path):
            source = self.writer.source_of(name, path, self.sources)
        if self.writer.finished(source):
            self.report.already_in += 1
            if source.name != name:
                logger.info("%s has the same contents as %s, which is in the dataset", name, source.name)
            return
        refused: list[str] = []
        for key, latent, image in self._encoded(source, path):
            try:
                self.writer.append(key, latent, image, source)
                self.report.added += 1
            except NotFiniteError as error:
                refused.append(str(error))
        if self.stop.name:
            return
        if refused:
            raise VideoError(f"Windows of {path} that were left out: {len(refused)}. {refused[0]}")
        self.writer.finish_source(source)

    def _encoded(self, source: Source, path: Path) -> Iterator[tuple[str, Tensor, StartImage]]:
        with _as_video_errors(path):
            for start, window in windows(path, self.geometry):
                if self.stop.name:
                    return
                key = f"{source.name}#{start}"
                if key not in self.writer:
                    unit = frames_to_unit(window).to(self.device)
                    latent = self.encoder.vae.encode(unit)[0]
                    yield key, latent, self.encoder.encode(unit[:, 0], self.geometry.frames)


@contextmanager
def _as_video_errors(path: Path) -> Iterator[None]:
    """Turn every error of one video into a `VideoError`. One odd video must not end the preparation of the others."""
    try:
        yield
    except VideoError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise VideoError(
            f"{path} needs more memory than there is ({cause(error)}). Prepare smaller or shorter clips (--height, "
            f"--width, --frames), or re-encode the video at a smaller size."
        ) from error
    except Exception as error:
        if "CUDA error" in str(error):  # nothing works on a GPU after it
            raise MagicDistillError(
                f"The GPU failed while {path} was encoded ({cause(error)}). All windows before it are stored. Start "
                f"the same command again to continue."
            ) from error
        raise VideoError(
            f"{path} cannot be used ({type(error).__name__}: {cause(error)}). Re-encode it, for example to mp4 with "
            f"h264."
        ) from error
