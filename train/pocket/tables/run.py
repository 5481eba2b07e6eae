"""Make and measure all cells of the tables. A run that was stopped continues where it was."""

import logging
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.errors import ConfigError, MagicDistillError
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.pocket.files import SIZE
from magicdistill_core.pocket.render import DEFAULT_FRAMES
from magicdistill_core.writable import check_output_file, check_output_folder

from ...data.vae import load_vae
from ...distributed import available_device
from ...folder_lock import folder_lock
from ...signals import StopRequest
from ..latents import write_latents
from ..measuring.contenders import Contender
from ..measuring.held_out import hold_out
from ..measuring.measures import Measures, save_sheet
from ..measuring.reader.reading import load_reader
from .design import Cell, Design, Training
from .records import Record, Records, check_inputs, write_results
from .timing import measure_calls, plan
from .trainings import Launcher, Place, StoppedError, facts_of, make_model

logger = logging.getLogger(__name__)

# The record of other renders of the same beginnings, which is no model.
FLOOR = "floor"
_BATCH = 32


@dataclass(frozen=True)
class Settings:
    """The settings of the command.

    Attributes:
        runs: folder for the runs, the models, the records and the contact sheets.
        out: the JSON file of all results.
        teacher: the teacher's model file.
        vae: the video autoencoder's file.
        reader: the reader's file.
        calls: the budget of network calls of one training.
        portraits: number of portraits in the dataset of all trainings.
        clips: number of held-out start images.
        seeds: number of noise seeds for each.
        processes: number of trainings at once, and of processes that render.
        extra: settings `key=value` of every training.
    """

    runs: Path
    out: Path
    teacher: Path
    vae: Path
    reader: Path
    calls: int
    portraits: int
    clips: int
    seeds: int
    processes: int = 1
    extra: tuple[str, ...] = ()

    @cached_property
    def place(self) -> Place:
        """Where the trainings are."""
        runs = self.runs.resolve()
        files = self.teacher.resolve(), self.vae.resolve()
        return Place(runs, runs / "portraits", *files, self.calls, self.extra)

    @cached_property
    def trained_with(self) -> dict[str, Any]:
        """What determines the trainings, as JSON data."""
        return {
            "teacher": weights_sha256(self.teacher),
            "vae": weights_sha256(self.vae),
            "calls": self.calls,
            "portraits": self.portraits,
            "extra": list(self.extra),
        }

    @cached_property
    def measured_with(self) -> dict[str, Any]:
        """What determines the measures, in addition to the models."""
        return {"reader": weights_sha256(self.reader), "clips": self.clips, "seeds": self.seeds}


def show_plan(settings: Settings, only: Sequence[str]) -> str:
    """Return the plan of the chosen cells, with times from calls that are measured now; see `timing.plan`.

    Args:
        settings: the settings of the command.
        only: as for `Design.cells`.
    """
    call = measure_calls(settings.teacher, _BATCH)
    return plan(settings.place, Design().cells(only), settings.clips * settings.seeds, call)


def make_tables(
    settings: Settings,
    only: Sequence[str],
    say: Callable[[str], None],
    design: Design | None = None,
    launch: Callable[[list[str], Path], None] | None = None,
) -> Path:
    """Make and measure the chosen cells, and write all results that there are.

    Models, records and checkpoints that exist are used again, so a command that was stopped continues. The results are
    written after every cell.

    Args:
        settings: the settings of the command.
        only: as for `Design.cells`.
        say: called with a line of text before each stage.
        design: the tables; None for those of the papers.
        launch: function that runs the command of a training, as `Launcher`; None for a process of its own.

    Returns:
        The JSON file of the results.

    Raises:
        ConfigError: if there is no such cell, the teacher makes other clips than those of the pocket world, or the
            folder of the runs has trainings of other inputs.
        StoppedError: if a signal stopped the command.
        MagicDistillError: if a training failed. The other cells are made first.
    """
    design = design or Design()
    cells = design.cells(only)
    _check_teacher(settings.teacher)
    check_output_folder(settings.runs)
    check_output_file(settings.out)
    effect = "The trainings save a checkpoint and stop"
    with folder_lock(settings.runs, "magicdistill pocket tables"), StopRequest(effect) as stop:
        threads = max(1, (os.cpu_count() or 1) // settings.processes)
        tables = _Tables(settings, design, say, stop, launch or Launcher(lambda: stop.name, threads))
        tables.make(cells)
    return settings.out


def _check_teacher(file: Path) -> None:
    recipe = load_checkpoint(file, "meta").recipe
    if recipe is None or (recipe.frames, recipe.height, recipe.width) != (DEFAULT_FRAMES, SIZE, SIZE):
        clips = "no recipe" if recipe is None else f"{recipe.frames} frames, {recipe.width} x {recipe.height} pixels"
        raise ConfigError(
            f"The teacher {file} {'has' if recipe is None else 'makes clips of'} {clips}. Expected a teacher of pocket "
            f"portraits: {DEFAULT_FRAMES} frames, {SIZE} x {SIZE} pixels. Train one with `magicdistill pocket "
            f"train-teacher`."
        )


class _Tables:
    """The work of one command: the trainings in threads, each a process of its own, and the measures in this one."""

    def __init__(
        self,
        settings: Settings,
        design: Design,
        say: Callable[[str], None],
        stop: StopRequest,
        launch: Callable[[list[str], Path], None],
    ) -> None:
        self.settings, self.place, self.say, self.stop = settings, settings.place, say, stop
        self.launch = launch
        check_inputs(self.place.runs, settings.trained_with)
        self.records = Records(self.place.runs / "cells", settings.measured_with)
        tables = (cell.name for table in design.tables for row in table.rows for cell in row.cells)
        self.names = dict.fromkeys([FLOOR, *tables])
        self.failed: dict[str, MagicDistillError] = {}

    def make(self, cells: Sequence[Cell]) -> None:
        """Make and measure cells. Those that need no training are measured while the first trainings run."""
        missing = [cell for cell in cells if self.records.read(cell.name) is None]
        trainings: dict[Training, list[Cell]] = {}
        for cell in missing:
            if cell.training is not None:
                trainings.setdefault(cell.training, []).append(cell)
        if trainings:
            self.say(f"The dataset of {self.settings.portraits} portraits")
            write_latents(
                self.place.dataset,
                self.settings.portraits,
                vae_file=self.place.vae,
                processes=self.settings.processes,
            )
        self._train(trainings, [cell for cell in missing if cell.training is None])
        self._write()
        if self.failed:
            raise MagicDistillError("\n".join(f"{name}: {error}" for name, error in self.failed.items()))

    def _train(self, cells: dict[Training, list[Cell]], others: Sequence[Cell]) -> None:
        """Make the models, several at once, and measure the cells of each training when it is done.

        Args:
            cells: the cells of each training.
            others: cells that need no training.
        """
        waiting = dict(cells)
        running: dict[Future[None], Training] = {}
        with ThreadPoolExecutor(self.settings.processes) as pool:
            self._start(waiting, running, pool)
            self._floor()
            for cell in others:
                self._measure(cell)
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    training = running.pop(future)
                    # The next one starts before this one is measured.
                    self._start(waiting, running, pool)
                    try:
                        future.result()
                    except StoppedError:
                        raise
                    except MagicDistillError as error:
                        logger.warning("%s failed: %s", training.name, error)
                        self.failed[training.name] = error
                        continue
                    for cell in cells[training]:
                        self._measure(cell)
        for training in waiting:
            self.failed[training.name] = MagicDistillError(
                f"It needs the model of {training.pairs_from}, which could not be made."
            )

    def _start(
        self, waiting: dict[Training, list[Cell]], running: dict[Future[None], Training], pool: ThreadPoolExecutor
    ) -> None:
        """Start trainings that wait, as many as may run at once. Those whose pairs are not made yet go on waiting."""
        for training in [one for one in waiting if self._ready(one)]:
            if len(running) < self.settings.processes:
                running[pool.submit(self._models, waiting.pop(training))] = training

    def _ready(self, training: Training) -> bool:
        needed = training.pairs_from
        return needed is None or self.place.model_of(needed).exists()

    def _models(self, cells: Sequence[Cell]) -> None:
        """Make the models of one training, in the order of its stages."""
        for cell in cells:
            self.say(f"{cell.name}: training")
            if not make_model(self.place, cell, self.launch):
                return

    def _measure(self, cell: Cell) -> None:
        """Measure a cell and write its record; a run that ended before it gets a record without measures."""
        if self.stop.name is not None:
            raise StoppedError(
                f"Stopped by {self.stop.name}. Finished cells are kept; run the command again to continue."
            )
        file = self.place.model(cell)
        record: Record = {"steps": cell.steps, "machine": _machine(), **facts_of(self.place, cell)}
        if file.exists():
            self.say(f"{cell.name}: measuring")
            contender = Contender(cell.name, file, cell.steps)
            record["measures"], sheet = self.measures.of_contender(contender, _BATCH, lambda count: None)
            save_sheet(sheet, self.place.runs / "sheets" / f"{cell.name}.jpg")
        self.records.write(cell.name, record)
        self._write()

    def _floor(self) -> None:
        """Measure other renders of the same beginnings, if that is not done."""
        if self.records.read(FLOOR) is None:
            self.say("Other renders of the same beginnings: measuring")
            measures, sheet = self.measures.of_data()
            save_sheet(sheet, self.place.runs / "sheets" / f"{FLOOR}.jpg")
            self.records.write(FLOOR, {"machine": _machine(), "measures": measures})

    @cached_property
    def measures(self) -> Measures:
        """The held-out portraits with their measures, made at the first use."""
        settings, device = self.settings, available_device()
        self.say(f"{settings.clips} held-out portraits with {settings.seeds} more futures of each")
        vae = load_vae(settings.vae, device)
        held = hold_out(vae, settings.clips, settings.seeds, settings.processes)
        return Measures(held, vae, load_reader(settings.reader))

    def _write(self) -> None:
        facts = self.settings.trained_with | self.settings.measured_with
        write_results(self.settings.out, facts, self.records.all(self.names))


def _machine() -> str:
    device = available_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
