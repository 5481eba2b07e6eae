"""Preparation of a latent dataset from videos: decode, resample, cut into windows, resize and crop, encode.

An interrupted preparation continues when it is started again.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from magicdistill_core.errors import MagicDistillError, VideoError
from magicdistill_core.families.base import StartImage
from magicdistill_core.geometry import check_geometry, frames_to_unit
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.prompt_templates import PromptTemplate, architecture_of_template, needs_image

from ..console import progress_bar
from ..folder_lock import folder_lock
from ..signals import StopRequest
from .captions import CaptionError, find_captions
from .contents import Source
from .dataset_index import DatasetIndex, StoredDtype
from .dataset_writer import LatentWriter, NotFiniteError
from .encoders import TextEncoder, files_sha256, load_text_encoder
from .skipped import by_reason
from .start_images import StartImageEncoder, load_start_images
from .text_index import SamplePrompts, TextIndex
from .vae import load_vae
from .video_errors import as_video_errors
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
    text_encoder: Path | None = None,
    captions: Path | None = None,
    template: PromptTemplate | None = None,
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
        text_encoder: a diffusers pipeline whose text encoder encodes the captions (see `load_text_encoder`); None makes
            a dataset without captions.
        captions: table of the captions (see `find_captions`); None takes the text files next to the videos. A template
            that shows the start image needs no captions.
        template: the prompt template; None is the pipeline's own.

    Returns:
        The numbers of samples and videos, and the skipped videos.

    Raises:
        MagicDistillError: if there are no videos, none is usable, the geometry does not fit, the captions do not match
            the videos, an encoder is of another family, `out` cannot be written, is in use by another process, or holds
            a dataset with other settings; or the GPU fails.
    """
    check_geometry(frames, height, width)
    geometry = WindowGeometry(frames, height, width, fps, frames if stride is None else stride)
    if geometry.stride < 1 or not 0 < fps < math.inf:
        raise VideoError(
            f"stride is {stride} and fps is {fps}. Expected a stride of at least 1 frame and a positive fps."
        )
    sources = find_videos(videos)
    if template is not None and text_encoder is None:
        raise CaptionError(
            f"A prompt template is named ({template}), but no text encoder. Name the diffusers pipeline of the "
            f"teacher's release (--text-encoder), or leave out --template."
        )
    texts = _captions(sources, captions, text_encoder)
    report = PrepareReport()
    with folder_lock(out, "magicdistill prepare"):
        encoder = load_start_images(load_vae(vae, device), image_encoder, device)
        reader, text_index = None, None
        if text_encoder is not None:
            reader = load_text_encoder(text_encoder, template, device)
            _check_text_encoder(reader.template, encoder, text_encoder, with_captions=texts is not None)
            text_index = TextIndex(encoder_sha256=files_sha256(text_encoder), template=reader.template)
        index = DatasetIndex(
            **asdict(geometry),
            family=encoder.vae.architecture,
            dtype=dtype,
            vae_sha256=weights_sha256(vae),
            image_encoder_sha256=None if image_encoder is None else weights_sha256(image_encoder),
            texts=text_index,
        )
        with (
            StopRequest("The preparation ends after this window and keeps all windows so far") as stop,
            LatentWriter(out, index) as writer,
            _progress(console) as progress,
        ):
            task = progress.add_task("Preparing", total=len(sources), note="")
            preparation = _Preparation(writer, encoder, geometry, device, sources, report, stop, reader, texts or {})
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


def _captions(sources: Mapping[str, Path], table: Path | None, text_encoder: Path | None) -> dict[str, str] | None:
    """Return the captions that will be encoded; None if there are none, or no text encoder is named."""
    if text_encoder is None:
        if table is not None:
            raise CaptionError(
                f"A table of captions is named ({table}), but no text encoder. Name the diffusers pipeline of the "
                f"teacher's release (--text-encoder), or leave out --captions."
            )
        if unused := sum(path.with_suffix(".txt").is_file() for path in sources.values()):
            logger.info("%d videos have a caption next to them. It is not used without --text-encoder", unused)
        return None
    return find_captions(sources, table)


def _check_text_encoder(
    template: PromptTemplate, encoder: StartImageEncoder, pipeline: Path, *, with_captions: bool
) -> None:
    if (found := architecture_of_template(template)) != encoder.vae.architecture:
        raise CaptionError(
            f"The text encoder {pipeline} belongs to {found}, but the VAE encodes for {encoder.vae.architecture}. Use "
            f"both from the release of the teacher."
        )
    if not with_captions and not needs_image(template):
        raise CaptionError(
            f"A text encoder is named ({pipeline}), but there are no captions: no video has a text file next to it. "
            f"Add text files or a table (--captions), or leave out --text-encoder to train with the null prompt."
        )


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
    reader: TextEncoder | None
    captions: Mapping[str, str]

    def add(self, name: str, path: Path) -> None:
        """Add the windows of a video that are not in the dataset.

        Raises:
            VideoError: if a part of the video cannot be used; its other windows are added.
        """
        with as_video_errors(path):
            source = self.writer.source_of(name, path, self.sources)
        caption = self.captions.get(name, "")
        self._check_caption(source, path, caption)
        if self.writer.finished(source):
            self.report.already_in += 1
            if source.name != name:
                logger.info("%s has the same contents as %s, which is in the dataset", name, source.name)
            return
        refused: list[str] = []
        for key, latent, image, prompts in self._encoded(source, path, caption):
            try:
                self.writer.append(key, latent, image, source, prompts)
                self.report.added += 1
            except NotFiniteError as error:
                refused.append(str(error))
        if self.stop.name:
            return
        if refused:
            raise VideoError(f"Windows of {path} that were left out: {len(refused)}. {refused[0]}")
        self.writer.finish_source(source)

    def _check_caption(self, source: Source, path: Path, caption: str) -> None:
        """Refuse a video whose windows in the dataset have another caption."""
        if self.reader is not None and (others := sorted(self.writer.captions_of(source.name) - {caption})):
            raise VideoError(
                f"{path} has the caption {caption!r:.60}, but its windows in the dataset were encoded with "
                f"{others[0]!r:.60}. Restore the caption, or prepare the videos into another folder."
            )

    def _prompts(self, path: Path, caption: str, image: Tensor) -> SamplePrompts | None:
        """Encode the caption of a window if it is not yet in the dataset; the image is `[1, 3, H, W]`."""
        reader, texts = self.reader, self.writer.texts
        if reader is None or texts is None:
            return None
        seen = image if needs_image(reader.template) else None
        try:
            return texts.refer(caption, lambda text: reader.encode(text, seen))
        except (MagicDistillError, ValueError) as error:
            raise VideoError(f"The caption of {path} cannot be used: {error}") from error

    def _encoded(
        self, source: Source, path: Path, caption: str
    ) -> Iterator[tuple[str, Tensor, StartImage, SamplePrompts | None]]:
        with as_video_errors(path):
            for start, window in windows(path, self.geometry):
                if self.stop.name:
                    return
                key = f"{source.name}#{start}"
                if key not in self.writer:
                    unit = frames_to_unit(window).to(self.device)
                    first = unit[:, 0]
                    prompts = self._prompts(path, caption, first)
                    latent = self.encoder.vae.encode(unit)[0]
                    yield key, latent, self.encoder.encode(first, self.geometry.frames), prompts
