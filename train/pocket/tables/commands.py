"""The commands `magicdistill pocket tables`, `tables-page` and `pairs`."""

from pathlib import Path
from typing import Annotated

import typer

from magicdistill_core.errors import ConfigError
from magicdistill_core.pocket.files import FOUR_STEP_LORA, READER, TEACHER, VAE

from ...command_line import CommandLine
from ...console import show

_RESULTS = Path("docs/results/pocket_tables.json")
# Calls of about 70 updates of the preset pocket_w2s.yaml.
_CALLS = 1630


def add_commands(app: CommandLine) -> None:
    """Add the commands of this module to `magicdistill pocket`.

    Args:
        app: the group of commands.
    """
    app.command("tables")(_tables)
    app.command("tables-page")(_page)
    app.command("pairs")(_pairs)


def _tables(
    runs: Annotated[Path, typer.Option(help="Folder for runs, models, records and contact sheets.")] = Path(
        "runs/tables"
    ),
    out: Annotated[Path, typer.Option(help="JSON file of all results.")] = _RESULTS,
    teacher: Annotated[Path, typer.Option(help="Teacher file.")] = TEACHER,
    vae: Annotated[Path, typer.Option(help="Video autoencoder file of the teacher.")] = VAE,
    reader: Annotated[Path, typer.Option(help="Reader file, written by `train-reader`.")] = READER,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Table (main, one_step, ablation, collapse, sweep), row or cell. Repeatable. Default: all "
            "tables except sweep."
        ),
    ] = None,
    calls: Annotated[int, typer.Option(help="Budget of each training in network calls.", min=1)] = _CALLS,
    portraits: Annotated[int, typer.Option(help="Portraits in the dataset of all trainings.", min=1)] = 2048,
    clips: Annotated[int, typer.Option(help="Held-out start images of the measures.", min=8)] = 96,
    seeds: Annotated[int, typer.Option(help="Noise seeds for each start image.", min=2)] = 4,
    processes: Annotated[
        int, typer.Option(help="Trainings at once. On a GPU several small ones fit next to each other.", min=1)
    ] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Only show the cells, their calls and the time.")] = False,
    settings: Annotated[list[str] | None, typer.Argument(help="key=value settings of every training.")] = None,
) -> None:
    """Train and measure every row of the papers' tables. Run it again to continue after a stop."""
    from .run import Settings, make_tables, show_plan

    chosen = Settings(runs, out, teacher, vae, reader, calls, portraits, clips, seeds, processes, tuple(settings or ()))
    if plan:
        show(show_plan(chosen, only or []))
        return
    written = make_tables(chosen, only or [], lambda text: show(text, error=True))
    show(f"Results in {written}, contact sheets in {runs / 'sheets'}")


def _page(
    results: Annotated[Path, typer.Option(help="JSON file that `tables` wrote.")] = _RESULTS,
    page: Annotated[Path, typer.Option(help="Page whose generated part is written.")] = Path("docs/fidelity.md"),
    runs: Annotated[Path, typer.Option(help="Folder of the runs, for the contact sheets.")] = Path("runs/tables"),
    sheet: Annotated[
        list[str] | None, typer.Option(help="Cell whose contact sheet is copied to the page. Repeatable.")
    ] = None,
) -> None:
    """Write the results into docs/fidelity.md, and copy contact sheets next to it."""
    from .page import copy_sheets, sheets_of, write_page
    from .records import read_results

    copy_sheets(runs / "sheets", sheet or [], page)
    write_page(page, read_results(results), sheets_of(page))
    show(f"Written to {page}")


def _pairs(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the key.")] = Path("out/pairs"),
    left: Annotated[Path, typer.Option(help="One model file or generator LoRA.")] = FOUR_STEP_LORA,
    right: Annotated[Path, typer.Option(help="The other one.")] = TEACHER,
    left_steps: Annotated[int | None, typer.Option(help="Steps of --left. Default: its recipe's.", min=1)] = None,
    right_steps: Annotated[int | None, typer.Option(help="Steps of --right. Default: its recipe's.", min=1)] = None,
    base: Annotated[Path, typer.Option(help="Model file to which a LoRA belongs.")] = TEACHER,
    vae: Annotated[Path, typer.Option(help="Video autoencoder file of both models.")] = VAE,
    pairs: Annotated[int, typer.Option(help="Number of pairs.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the order in each pair.", min=0)] = 0,
    reveal: Annotated[
        str | None, typer.Option(help="Your choices, L or R for each pair, such as LRRL. Counts them.")
    ] = None,
) -> None:
    """Show pairs of samples side by side without their names; each pair has its own order. Then count the choices."""
    from ..measuring.contenders import Contender, load_contender
    from ..pairs import reveal as count
    from ..pairs import write_pairs

    if reveal is not None:
        show(count(out, reveal).text)
        return

    def contender(file: Path, steps: int | None) -> Contender:
        recipe = load_contender(Contender(file.stem, file, 1, base))[1]
        return Contender(file.stem, file, steps or recipe.steps, base)

    first, second = contender(left, left_steps), contender(right, right_steps)
    if (first.file.resolve(), first.steps) == (second.file.resolve(), second.steps):
        raise ConfigError(f"Both sides are {left} with {first.steps} steps. Name two models, or two numbers of steps.")
    write_pairs(first, second, vae, out, pairs, seed)
    show(f"Look at the pictures in {out}, write down L or R for each, and run this command with --reveal LRRL...")
