"""The cells of the tables: their names, their order, and their configurations."""

from pathlib import Path

import pytest

from magicdistill_core.errors import ConfigError
from train.config.methods import DMDConfig, W2SConfig
from train.config.reading import load_config
from train.pocket.tables.design import CHECKPOINTS, GENERATOR_LR, SEEDS, Design
from train.pocket.tables.papers import PAPER
from train.pocket.tables.trainings import PRESETS, Place

CALLS = 1000


@pytest.fixture
def place(tmp_path: Path, teacher_file: Path) -> Place:
    return Place(tmp_path / "runs", tmp_path / "portraits", teacher_file, tmp_path / "vae.safetensors", CALLS)


def test_names_are_unique_and_every_number_of_the_paper_has_a_row() -> None:
    tables = Design().tables
    by_name: dict[str, object] = {}
    for cell in (cell for table in tables for row in table.rows for cell in row.cells):
        assert by_name.setdefault(cell.name, cell) == cell
    trainings = {cell.training for table in tables for row in table.rows for cell in row.cells if cell.training}
    assert len({training.name for training in trainings}) == len(trainings)
    assert set(PAPER) <= {row.name for table in tables for row in table.rows}


def test_rows_that_claims_rest_on_have_three_seeds() -> None:
    rows = {row.name: row for table in Design().tables for row in table.rows}
    for name in ("lcm-4", "dmd-4", "dmd2-4", "w2s-4", "w2s_lora-4", "one_step-1"):
        assert [cell.training.seed for cell in rows[name].cells if cell.training] == list(range(SEEDS))
    assert len(rows["supervised-4"].cells) == 1


def test_a_cell_comes_after_the_one_that_it_needs() -> None:
    chosen = [cell.name for cell in Design().cells(["one_step-1-seed1", "euler-1"])]
    assert chosen == ["w2s-4-seed1", "one_step-1-seed1", "euler-1"]
    everything = [cell.name for cell in Design().cells()]
    assert len(everything) == len(set(everything))
    assert not [name for name in everything if name.startswith("sweep")]
    assert all(cell.name.startswith("sweep") for cell in Design().cells(["sweep"]))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no table, row or cell wan.*main, euler-28"):
        Design().cells(["main", "wan"])


def test_every_training_is_a_valid_configuration_with_its_checkpoints(place: Place) -> None:
    for cell in (*Design().cells(), *Design().cells(["sweep"])):
        if cell.training is None:
            continue
        config = place.config(cell.training)
        assert config.guard.action == "warn"
        assert config.seed == cell.training.seed
        assert config.schedule.steps == cell.steps
        if cell.stage is not None:
            assert config.updates == cell.training.stages[-1]
            continue
        assert config.checkpoint.every == config.validation.every
        saved = -(-config.updates // config.checkpoint.every)
        assert saved <= CHECKPOINTS


def test_trainings_of_equal_steps_make_equal_numbers_of_calls(place: Place) -> None:
    for cell in Design().cells(["main", "one_step", "ablation"]):
        if cell.training is None:
            continue
        warmup, each = place.calls_of(cell.training)
        made = warmup.forward + place.updates(cell.training) * each.forward
        assert made == pytest.approx(cell.training.budgets * CALLS, abs=each.forward / 2)
        # A one-step generator with pairs has used one budget before.
        before = 1 if cell.training.pairs_from else 0
        assert before + cell.training.budgets == (2 if cell.steps == 1 else 1)


def test_the_sweep_s_control_is_dmd_at_the_rate_that_a_weak_would_leave(place: Place) -> None:
    preset = load_config(PRESETS / "pocket_w2s.yaml")
    assert preset.generator_optimizer.lr == GENERATOR_LR
    configs = {c.training.name: place.config(c.training) for c in Design().cells(["sweep"]) if c.training}
    weak, control = configs["sweep-rate10-weak0.75"], configs["sweep-rate10-control0.75"]
    assert isinstance(weak.method, W2SConfig)
    assert isinstance(control.method, DMDConfig)
    assert weak.method.a_weak == 0.75
    assert control.generator_optimizer.lr == pytest.approx(0.25 * weak.generator_optimizer.lr)
    assert control.fake_optimizer == weak.fake_optimizer
    assert weak.fake_optimizer is not None
    assert weak.fake_optimizer.lr == pytest.approx(10 * GENERATOR_LR)
