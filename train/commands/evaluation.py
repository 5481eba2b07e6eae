"""The command `eval`: measure folders of videos."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from magicdistill_core.errors import ConfigError

from ..console import show
from .options import DeviceOption, device_of

_MOST_PROCESSES = 8


def evaluate(
    generated: Annotated[
        list[str] | None,
        typer.Option(help="Folder of videos, or NAME=FOLDER. Repeat it for several; the first one is compared with."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the result. Repeat the command to go on.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of start images named like the videos, or a .csv table with the columns video, image and, if "
            "wanted, reference."
        ),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Folder of real videos, or of a teacher's.")] = None,
    networks: Annotated[
        Path | None, typer.Option(help="Folder of network files. What is missing is named, and nothing replaces it.")
    ] = None,
    measures: Annotated[str | None, typer.Option(help="Names of measures, with commas; by default all.")] = None,
    fvd_frames: Annotated[int, typer.Option(min=10, help="Frames of a clip for FVD.")] = 16,
    shown: Annotated[int, typer.Option(min=0, help="Start images whose videos the page shows.")] = 6,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one per CPU core, at most 8, and 1 on a GPU.")
    ] = None,
    device: DeviceOption = None,
    list_networks: Annotated[
        bool, typer.Option("--list-networks", help="Print the table of networks, and where to get them.")
    ] = False,
) -> None:
    """Measure folders of videos: VBench-I2V, FID, FVD, LPIPS, faces, drift and defects, in tables and on a page."""
    from ..eval.report.markdown import network_lines

    if list_networks:
        show("\n".join(network_lines()))
        return
    if not generated or out is None:
        raise ConfigError("--generated and --out are needed: the folder of videos, and the folder of the result.")
    from magicdistill_core.files import write_text

    from ..eval.folders import parse_systems
    from ..eval.measures import all_measures
    from ..eval.report.markdown import markdown
    from ..eval.report.page import write_page
    from ..eval.run import Request, wanted_measures
    from ..eval.run import evaluate as run
    from ..folder_lock import folder_lock

    where = device_of(device)
    count = processes or (1 if where.type != "cpu" else min(_MOST_PROCESSES, len(os.sched_getaffinity(0))))
    names = [name.strip() for name in measures.split(",") if name.strip()] if measures else []
    request = Request(parse_systems(generated), out, images, reference, networks, names, fvd_frames, count, where)
    with folder_lock(out, "magicdistill eval"):
        evaluation = run(request, Console(stderr=True))
        write_text(out / "results.json", json.dumps(evaluation.result, indent=1, allow_nan=False) + "\n")
        wanted = wanted_measures(request)
        write_text(out / "results.md", markdown(evaluation.result, wanted))
        write_page(evaluation, wanted, out, shown)
    left_out = sum(len(system["left_out"]) for system in evaluation.result["systems"].values())
    for warning in evaluation.result["warnings"]:
        show(warning, error=True, style="yellow")
    for key, reason in evaluation.result["not_run"].items():
        show(f"not run: {key}: {reason}", error=True)
    show(
        f"Wrote {out / 'index.html'}, results.md and results.json: {len(evaluation.measures)} of "
        f"{len(all_measures(fvd_frames))} measures ran, {left_out} results were left out."
    )
