"""Commands that curate videos: `data scan`, `data review` and `data encode`."""

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..console import show

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


def _stopped(by: str | None) -> None:
    if by:
        show(f"Stopped by {by}. Everything so far is stored. Start the same command again to continue.")
        raise typer.Exit(128 + signal.Signals[by])
