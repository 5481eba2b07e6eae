"""What the tables consist of: trainings, cells, and the rows that show them.

A *training* is one run of the trainer. A *cell* is one measured model at one number of steps. A *stage* is an update at
which a training pauses so that its model can be measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from magicdistill_core.errors import ConfigError

TableName = Literal["main", "one_step", "ablation", "collapse", "sweep"]

# The rows that the claims rest on have this many training seeds; all others have one.
SEEDS = 3
# Each run has this many checkpoints with validations, from which the best is chosen.
CHECKPOINTS = 10
# Clips of a validation. The dataset keeps as many out of training by default.
VALIDATION_CLIPS = 64
# Steps of the generator whose samples the method one_step learns.
PAIR_STEPS = 4

_COLLAPSE_STAGES = (80, 160, 240, 320, 480, 720, 960)
_SWEEP_STAGES = (40, 150, 600, 1800)
# Learning rate of the presets' generator, and multiples of it for the fake branch.
GENERATOR_LR = 1e-4
_SWEEP_RATES = (1, 10)
_SWEEP_WEIGHTS = (0.0, 0.25, 0.75)
_ABLATION_WEIGHTS = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Training:
    """One run.

    Attributes:
        name: name of the run's folder.
        preset: file name in `train/presets`, without its suffix.
        settings: settings that override the preset.
        seed: the run's seed.
        budgets: how many budgets of network calls the run has; no effect with `stages`.
        stages: the updates to measure. Empty measures the best checkpoint of a run whose length follows from the
            budget.
        pairs_from: the cell whose model is the few-step generator of `one_step`; None for other methods.
    """

    name: str
    preset: str
    settings: tuple[str, ...] = ()
    seed: int = 0
    budgets: int = 1
    stages: tuple[int, ...] = ()
    pairs_from: str | None = None


@dataclass(frozen=True)
class Cell:
    """One measured model at one number of steps.

    Attributes:
        name: name of the record, of the model file and of the contact sheet.
        steps: number of sampling steps.
        training: the run that makes the model; None for the teacher.
        stage: the update of the model; None for the run's best checkpoint.
    """

    name: str
    steps: int
    training: Training | None = None
    stage: int | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: the key of the row, also in `PAPER`.
        label: the text of the row.
        cells: one cell per training seed.
    """

    name: str
    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table of rows.

    Attributes:
        name: name of the table, for the command line.
        title: its heading on the page.
        rows: its rows.
    """

    name: TableName
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Design:
    """All tables.

    Attributes:
        tables: the tables in the order of the page.
    """

    tables: tuple[Table, ...] = field(default_factory=lambda: _tables())

    def cells(self, only: Sequence[str] = ()) -> tuple[Cell, ...]:
        """Return the chosen cells, each once, and the cells that their trainings need, which come before them.

        Args:
            only: names of tables, rows or cells. Without names all tables are chosen except `sweep`, the longest one.

        Raises:
            ConfigError: if there is no table, row or cell of such a name.
        """
        by_name = {cell.name: cell for table in self.tables for row in table.rows for cell in row.cells}
        groups: dict[str, list[Cell]] = {name: [cell] for name, cell in by_name.items()}
        for table in self.tables:
            for row in table.rows:
                # Rows of several tables may share a name.
                groups.setdefault(row.name, []).extend(row.cells)
                groups.setdefault(table.name, []).extend(row.cells)
        wanted = list(only) or [table.name for table in self.tables if table.name != "sweep"]
        if unknown := [name for name in wanted if name not in groups]:
            known = ", ".join(dict.fromkeys(name for table in self.tables for name in (table.name, *_rows(table))))
            raise ConfigError(f"There is no table, row or cell {', '.join(unknown)}. Known tables and rows: {known}.")
        chosen: dict[str, Cell] = {}
        for cell in (cell for name in wanted for cell in groups[name]):
            if cell.training is not None and cell.training.pairs_from is not None:
                chosen[cell.training.pairs_from] = by_name[cell.training.pairs_from]
            chosen[cell.name] = cell
        return tuple(chosen.values())


def _rows(table: Table) -> Iterable[str]:
    return (row.name for row in table.rows)


def _tables() -> tuple[Table, ...]:
    four = {name: _trained(name, 4, range(SEEDS)) for name in ("lcm", "dmd", "dmd2", "w2s")}
    supervised = _trained("supervised", 4, range(1))
    lora = _trained("w2s_lora", 4, range(SEEDS))
    main = (
        _euler(28),
        _euler(8),
        _euler(4),
        Row("lcm-4", "LCM, 4 steps", four["lcm"]),
        Row("dmd-4", "DMD, 4 steps", four["dmd"]),
        Row("dmd2-4", "DMD2, 4 steps", four["dmd2"]),
        Row("w2s-4", "W2S, 4 steps", four["w2s"]),
        Row("w2s_lora-4", "W2S as a LoRA of rank 16, 4 steps", lora),
        Row("supervised-4", "W2S with supervision, 4 steps", supervised),
    )
    return (
        Table("main", "Four steps", main),
        Table("one_step", "One step", _one_step()),
        Table("ablation", "Weight of the real score, with and without supervision", _ablation(four, supervised)),
        Table("collapse", "Small batches, to three times the usual length", tuple(_collapse())),
        Table("sweep", "Rate of the fake score, and weight of the real score", tuple(_sweep())),
    )


def _euler(steps: int) -> Row:
    return Row(
        f"euler-{steps}", f"Teacher, {steps} {'step' if steps == 1 else 'steps'}", (Cell(f"euler-{steps}", steps),)
    )


def _trained(method: str, steps: int, seeds: Iterable[int], settings: tuple[str, ...] = ()) -> tuple[Cell, ...]:
    """Return the cells of one method, one per seed, each the best checkpoint of its run."""
    cells = []
    for seed in seeds:
        name = f"{method}-{steps}-seed{seed}"
        # A one-step generator learns from a four-step generator, which has used one budget itself. The other methods
        # get both budgets at once.
        training = Training(name, f"pocket_{method}", settings, seed, budgets=2 if steps == 1 else 1)
        cells.append(Cell(name, steps, training))
    return tuple(cells)


def _one_step() -> tuple[Row, ...]:
    pairs = []
    for seed in range(SEEDS):
        name = f"one_step-1-seed{seed}"
        training = Training(name, "pocket_one_step", (), seed, pairs_from=f"w2s-{PAIR_STEPS}-seed{seed}")
        pairs.append(Cell(name, 1, training))
    plain = {name: _trained(name, 1, range(1), ("schedule.steps=1",)) for name in ("lcm", "dmd", "dmd2", "w2s")}
    return (
        _euler(1),
        Row("lcm-1", "LCM, 1 step", plain["lcm"]),
        Row("dmd-1", "DMD, 1 step", plain["dmd"]),
        Row("dmd2-1", "DMD2, 1 step", plain["dmd2"]),
        Row("w2s-1", "W2S without pairs, 1 step", plain["w2s"]),
        Row("one_step-1", "W2S with pairs of the 4-step generator, 1 step", tuple(pairs)),
    )


def _ablation(four: dict[str, tuple[Cell, ...]], supervised: tuple[Cell, ...]) -> tuple[Row, ...]:
    """Return the grid of a_weak and supervision. Cells of the first table are used again; a_weak = 0 is DMD."""
    shared = {(0.0, False): four["dmd"][0], (0.25, False): four["w2s"][0], (0.25, True): supervised[0]}
    rows = []
    for weight in _ABLATION_WEIGHTS:
        for regularised in (False, True):
            key = f"weak{weight:g}-{'supervised' if regularised else 'plain'}"
            preset = "pocket_supervised" if regularised else "pocket_w2s"
            new = Cell(key, 4, Training(key, preset, (f"method.a_weak={weight:g}",)))
            label = f"a_weak {weight:g}, {'with' if regularised else 'without'} supervision"
            rows.append(Row(key, label, (shared.get((weight, regularised), new),)))
    return tuple(rows)


def _staged(name: str, label: str, preset: str, settings: tuple[str, ...], stages: tuple[int, ...]) -> Iterable[Row]:
    """Return one row per stage of a run."""
    training = Training(name, preset, settings, stages=stages)
    for stage in stages:
        cell = Cell(f"{name}-{stage:06d}", 4, training, stage)
        yield Row(cell.name, f"{label}, {stage} updates", (cell,))


def _collapse() -> Iterable[Row]:
    small = ("data.micro_batch=4", "data.accumulation=1", "method.fake_warmup=0")
    for method in ("dmd", "w2s"):
        for speed, rate in (("usual", ()), ("slow", (f"fake_optimizer.lr={GENERATOR_LR:g}",))):
            label = f"{method.upper()}, batch 4, {speed} fake score"
            yield from _staged(
                f"collapse-{method}-{speed}", label, f"pocket_{method}", (*small, *rate), _COLLAPSE_STAGES
            )


def _sweep() -> Iterable[Row]:
    for rate in _SWEEP_RATES:
        fake = f"fake_optimizer.lr={rate * GENERATOR_LR:g}"
        for weight in _SWEEP_WEIGHTS:
            label = f"fake rate {rate} x, a_weak {weight:g}"
            settings = (fake, f"method.a_weak={weight:g}")
            yield from _staged(f"sweep-rate{rate}-weak{weight:g}", label, "pocket_w2s", settings, _SWEEP_STAGES)
        for weight in _SWEEP_WEIGHTS[1:]:
            slower = GENERATOR_LR * (1 - weight)
            label = f"fake rate {rate} x, DMD with the generator's rate x {1 - weight:g}"
            settings = (fake, f"generator_optimizer.lr={slower:g}")
            yield from _staged(f"sweep-rate{rate}-control{weight:g}", label, "pocket_dmd", settings, _SWEEP_STAGES)
