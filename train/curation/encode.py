"""Encoding of the kept shots of a manifest into a dataset in parts."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console

from magicdistill_core.errors import VideoError, cause
from magicdistill_core.geometry import check_geometry, frames_to_unit
from magicdistill_core.hashes import weights_sha256

from ..console import progress_bar
from ..data.contents import Source, content_of
from ..data.dataset_index import Content, DatasetIndex, StoredDtype
from ..data.dataset_writer import NotFiniteError
from ..data.part_writer import PartWriter
from ..data.parts import PART_PREFIX
from ..data.start_images import StartImageEncoder, load_start_images
from ..data.vae import load_vae
from ..data.video_errors import as_video_errors
from ..data.windows import WindowGeometry
from ..folder_lock import folder_lock
from ..signals import StopRequest
from .manifest import Manifest, Row, read_manifest
from .packages import CurationError
from .rules import Rules, apply_rules, read_rules
from .windows import ShotPlan, choose_geometry, shot_windows

logger = logging.getLogger(__name__)


@dataclass
class EncodeReport:
    """The result of an encoding.

    Attributes:
        added: number of samples that were added, by the folder of their dataset.
        already_in: number of videos of this part that were finished before.
        unfit: number of kept shots that are too short or too small for every size.
        empty: number of fitting shots without a window that shows the face all the time.
        skipped: the reason for each video that could not be used completely, by its name.
        stopped_by: the name of the signal that stopped it; None if it finished.
    """

    added: dict[Path, int] = field(default_factory=dict)
    already_in: int = 0
    unfit: int = 0
    empty: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    stopped_by: str | None = None


@dataclass(frozen=True)
class Share:
    """The share of the videos that a process encodes: `number` of `count`, from 1."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise CurationError(f"The part is {self.number}/{self.count}, expected a number from 1/{self.count}.")

    def __str__(self) -> str:
        return f"{self.number:0{len(str(self.count))}d}of{self.count}"

    def has(self, video: str) -> bool:
        """Return whether a video belongs to this share. It depends on the video's name alone.

        Args:
            video: the video's name.
        """
        digest = hashlib.blake2b(video.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.number - 1


def encode(
    manifest: Path,
    rules: Path,
    out: Path,
    vae: Path,
    geometries: Sequence[WindowGeometry],
    share: Share,
    dtype: StoredDtype = "float16",
    device: torch.device | str = "cpu",
    image_encoder: Path | None = None,
    videos: Path | None = None,
    console: Console | None = None,
) -> EncodeReport:
    """Encode windows of the kept shots. Running it again continues, and adds the shots of newly scanned videos.

    Args:
        manifest: the manifest's folder.
        rules: the rules that choose the shots.
        out: the dataset's folder; with several sizes, the folder of a dataset for each (`dataset_folders`).
        vae: a VAE as for `load_vae`.
        geometries: the sizes of windows. All have one frame rate.
        share: the share of the videos that this process encodes, into a part of its own.
        dtype: format of the stored latents.
        device: device of the VAE and the image encoder.
        image_encoder: CLIP's folder, for a family that uses its features.
        videos: where the videos are now; None is where the scan found them.
        console: shows the progress bar; None shows none.

    Raises:
        MagicDistillError: if the manifest, the rules or the VAE cannot be used, no shot is kept, a size does not fit,
            or `out` cannot be written, is in use, or holds a dataset with other settings.
    """
    for geometry in geometries:
        check_geometry(geometry.frames, geometry.height, geometry.width)
    limits = read_rules(rules)
    scan = read_manifest(manifest)
    kept = apply_rules(scan, limits).kept
    if not kept:
        raise CurationError(
            f"The rules {rules} keep none of the {len(scan.rows)} shots of {manifest}. `magicdistill data review` "
            f"shows which rule drops them."
        )
    report = EncodeReport()
    folders = dataset_folders(out, geometries)
    part = f"{PART_PREFIX}{share}"
    with ExitStack() as stack:
        for folder in folders.values():
            stack.enter_context(folder_lock(folder / part, "magicdistill data encode"))
        encoder = load_start_images(load_vae(vae, device), image_encoder, device)
        stop = stack.enter_context(StopRequest("The encoding ends after this window and keeps all windows so far"))
        writers: dict[WindowGeometry, PartWriter] = {}
        for geometry, folder in folders.items():
            index = DatasetIndex(
                **asdict(geometry),
                family=encoder.vae.architecture,
                dtype=dtype,
                vae_sha256=weights_sha256(vae),
                image_encoder_sha256=None if image_encoder is None else weights_sha256(image_encoder),
                rules_sha256=_digest(limits),
            )
            writers[geometry] = stack.enter_context(PartWriter(folder, index, str(share)))
            report.added[folder] = 0
        encoding = _Encoding(scan, videos or scan.videos, folders, writers, encoder, device, report, stop)
        progress = stack.enter_context(progress_bar(console, disable=console is None))
        own = [row for row in kept if share.has(row["video"])]
        own = [row | {"samples": samples} for row, samples in zip(own, scan.samples(own), strict=True)]
        wanted = [(name, list(rows)) for name, rows in groupby(own, lambda row: row["video"])]
        task = progress.add_task("Encoding", total=len(wanted), note="")
        for name, rows in wanted:
            if stop.name:
                break
            progress.update(task, note=name)
            try:
                encoding.add(name, rows)
            except VideoError as error:
                report.skipped[name] = str(error)
                logger.warning("skipped: %s", error)
            progress.advance(task)
        report.stopped_by = stop.name
    return report


def dataset_folders(out: Path, geometries: Sequence[WindowGeometry]) -> dict[WindowGeometry, Path]:
    """Return the folder of each size's dataset: `out` itself for one size, else a subfolder for each.

    Args:
        out: the folder.
        geometries: the sizes.
    """
    if len(geometries) == 1:
        return {geometries[0]: out}
    return {geometry: out / f"{geometry.height}x{geometry.width}x{geometry.frames}" for geometry in geometries}


def _digest(rules: Rules) -> str:
    text = json.dumps({name: limits.model_dump() for name, limits in rules.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class _Encoding:
    scan: Manifest
    videos: Path
    folders: Mapping[WindowGeometry, Path]
    writers: Mapping[WindowGeometry, PartWriter]
    encoder: StartImageEncoder
    device: torch.device | str
    report: EncodeReport
    stop: StopRequest

    def add(self, name: str, rows: Sequence[Row]) -> None:
        """Add the windows of the kept shots of one video.

        Raises:
            VideoError: if the video is gone, has changed since the scan, or is damaged; its windows before the damage
                are kept.
        """
        path = self.videos if self.videos.is_file() else self.videos / name
        source = Source(name, Content(bytes=rows[0]["bytes"], sha256=rows[0]["sha256"]))
        if all(writer.finished(source) for writer in self.writers.values()):
            self.report.already_in += 1
            return
        try:
            now = content_of(path)
        except OSError as error:
            raise VideoError(
                f"{path} cannot be read ({cause(error)}). Name the folder of the videos: --videos."
            ) from error
        if now != source.content:
            raise VideoError(f"{path} has changed since it was scanned. Scan again.")
        chosen = [(row, choose_geometry(row, list(self.writers))) for row in rows]
        plans = [ShotPlan(row, geometry) for row, geometry in chosen if geometry is not None]
        self.report.unfit += len(rows) - len(plans)
        if plans:
            self._add(path, source, plans)
        if not self.stop.name:
            for writer in self.writers.values():
                writer.finish_source(source)

    def _add(self, path: Path, source: Source, plans: Sequence[ShotPlan]) -> None:
        refused: list[str] = []
        used: set[int] = set()
        for start, plan, window in self._windows(path, plans):
            used.add(plan.row["shot"])
            key = f"{source.name}#{start}"
            writer = self.writers[plan.geometry]
            if key in writer:
                continue
            with as_video_errors(path):
                unit = frames_to_unit(window).to(self.device)
                latent = self.encoder.vae.encode(unit)[0]
                image = self.encoder.encode(unit[:, 0], plan.geometry.frames)
            try:
                writer.append(key, latent, image)
                self.report.added[self.folders[plan.geometry]] += 1
            except NotFiniteError as error:
                refused.append(str(error))
        if not self.stop.name:
            self.report.empty += len(plans) - len(used)
        if refused:
            raise VideoError(f"Windows of {path} that were left out: {len(refused)}. {refused[0]}")

    def _windows(self, path: Path, plans: Sequence[ShotPlan]) -> Iterator[tuple[int, ShotPlan, torch.Tensor]]:
        with as_video_errors(path):
            for window in shot_windows(path, plans):
                if self.stop.name:
                    return
                yield window
