"""Commands that curate videos: `data scan`, `data review` and `data encode`."""

import math
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from magicdistill_core.errors import ConfigError

from ..console import show
from .options import STORED, DeviceOption, Dtype, ImageEncoderOption, VaeOption, device_of

if TYPE_CHECKING:
    from ..curation.encode import Share
    from ..data.windows import WindowGeometry

app = typer.Typer(no_args_is_help=True, help="From a folder of videos to the shots that are worth training on.")


@app.command()
def scan(
    videos: Annotated[Path, typer.Option(help="Folder of videos, including its subfolders, or one video.")],
    out: Annotated[Path, typer.Option(help="Folder of the manifest to create or to extend.")],
    faces: Annotated[Path, typer.Option(help="MediaPipe's face landmarker, face_landmarker.task.")],
    processes: Annotated[int, typer.Option(min=1, help="Number of videos to look at in parallel.")] = 1,
) -> None:
    """Look at every video once: shots, faces, motion, picture and sound. Repeat the command to continue."""
    from ..curation.scan import scan as run

    report = run(videos, out, faces, processes, Console(stderr=True))
    show(
        f"{report.added} videos scanned with {report.shots} shots; {report.already_in} were already in {out}. "
        f"{report.damaged} are damaged, or damaged in part."
    )
    _stopped(report.stopped_by)


@app.command()
def review(
    manifest: Annotated[Path, typer.Argument(help="Folder of the manifest that `data scan` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the report to write.")],
    rules: Annotated[
        Path | None, typer.Option(help="YAML file of limits; by default the rules of this project.")
    ] = None,
) -> None:
    """Apply rules to the shots of a scan, and write a report with counts, histograms and pictures. Takes seconds."""
    from ..curation.review import PAGE, USED_RULES
    from ..curation.review import review as run
    from ..curation.rules import DAMAGED, DEFAULT, read_rules

    rules = rules or DEFAULT
    verdicts = run(manifest, out, rules)
    show(f"{len(verdicts.kept)} of {len(verdicts.verdicts)} shots are kept. The report is {out / PAGE}.")
    for name in (DAMAGED, *read_rules(rules)):
        if count := len(verdicts.dropped_by(name)):
            show(f"{name} drops {count}, {verdicts.only_by(name)} of them alone")
    show(f"To change a limit, edit {out / USED_RULES} and name it with --rules.")


@app.command()
def encode(
    manifest: Annotated[Path, typer.Argument(help="Folder of the manifest that `data scan` wrote.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to create or to extend; with several sizes, their folder.")],
    size: Annotated[
        list[str], typer.Option(help="Height x width x frames of the samples, such as 544x960x129. Repeat it for more.")
    ],
    rules: Annotated[Path | None, typer.Option(help="YAML file of limits, as for `data review`.")] = None,
    vae: VaeOption = None,
    image_encoder: ImageEncoderOption = None,
    fps: Annotated[float, typer.Option(help="Frame rate of the samples; videos are resampled to it.")] = 24.0,
    part: Annotated[
        str | None,
        typer.Option(help="I/N: encode the I-th of N parts of the videos. By default the process of `torchrun`."),
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="Where the videos are, if they moved since the scan.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type of the stored latents.")] = Dtype.FP16,
    device: DeviceOption = None,
) -> None:
    """Encode windows around the faces of the kept shots into a dataset. Repeat the command to continue."""
    from magicdistill_core.pocket.files import VAE

    from ..curation.encode import encode as run
    from ..curation.rules import DEFAULT
    from ..data.skipped import by_reason

    report = run(
        manifest,
        rules or DEFAULT,
        out,
        vae or VAE,
        _sizes(size, fps),
        _share(part),
        STORED[dtype],  # type: ignore[arg-type]
        device_of(device),
        image_encoder,
        videos,
        Console(stderr=True),
    )
    for folder, added in report.added.items():
        show(f"{added} samples added to {folder}")
    show(
        f"{report.already_in} videos were already in the dataset. {report.unfit} shots are too short or too small for "
        f"every size, {report.empty} have no window that shows the face all the time."
    )
    for reason in by_reason(report.skipped):
        show(f"Skipped: {reason}", style="yellow")
    _stopped(report.stopped_by)


def _sizes(texts: list[str], fps: float) -> "list[WindowGeometry]":
    from ..data.windows import WindowGeometry

    if not 0 < fps < math.inf:
        raise ConfigError(f"--fps is {fps}, expected a positive number of frames per second.")
    found = []
    for text in dict.fromkeys(texts):
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
        if match is None:
            raise ConfigError(f"--size is {text!r}, expected height x width x frames, such as 544x960x129.")
        height, width, frames = map(int, match.groups())
        found.append(WindowGeometry(frames, height, width, fps, frames))
    return found


def _share(part: str | None) -> "Share":
    from ..curation.encode import Share

    if part is None:
        return Share(int(os.environ.get("RANK", "0")) + 1, int(os.environ.get("WORLD_SIZE", "1")))
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if match is None:
        raise ConfigError(f"--part is {part!r}, expected I/N, such as 1/4 for the first of four parts.")
    return Share(*map(int, match.groups()))


def _stopped(by: str | None) -> None:
    if by:
        show(f"Stopped by {by}. Everything so far is stored. Start the same command again to continue.")
        raise typer.Exit(128 + signal.Signals[by])
