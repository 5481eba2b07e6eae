"""Validations of a run: exact resumes, processes, the best checkpoint, the guard, and clips that no training sees."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicdistill_core.safetensors_file import read_tensors
from tests.makers import json_lines, metrics_of
from train.data.dataset import LatentDataset
from train.data.held_out import held_out_samples
from train.run_folder import BEST, FOLDER, checkpoint_folder, read_manifest
from train.watch.report import write_report

UPDATES = 4


@pytest.fixture
def configured(tiny_config: Callable[..., dict], taehv_file: Path) -> Callable[..., dict]:
    def build(run: Path, **sections: object) -> dict:
        validation = {"every": 1, "samples": 5, "shown": 2, "vae": str(taehv_file)}
        # The tiny teacher is random, so its training makes the samples better or worse by chance.
        usual = {"validation": validation, "checkpoint": {"every": 1, "keep": 9}, "guard": {"energy_margin": 10}}
        return tiny_config(run, updates=UPDATES, method={"fake_updates": 1}) | usual | sections

    return build


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def whole(whole_folder: Path, configured: Callable, live: Callable) -> Path:
    """A run that was never stopped."""
    if not whole_folder.exists():
        life = live(configured(whole_folder))
        assert life.codes == [0], life.said
    return whole_folder


def validations(run: Path) -> list[dict]:
    return json_lines(run / "validation.jsonl")


def measures(run: Path) -> list[float | None]:
    return [read_manifest(checkpoint_folder(run, update)).measure for update in range(1, UPDATES + 1)]


def test_every_checkpoint_has_its_score_and_the_lowest_is_the_best(whole: Path) -> None:
    rows = validations(whole)
    assert [row["step"] for row in rows] == list(range(UPDATES + 1))
    assert {row["since"] for row in rows} == {0}
    assert (rows[0]["validation/difference"], rows[0]["validation/standard_error"]) == (0, 0)
    scores = [row["validation/energy"] for row in rows]
    assert scores[1:] == measures(whole)
    assert len(set(scores)) == UPDATES + 1
    for row in rows:
        assert row["validation/difference"] == pytest.approx(row["validation/energy"] - scores[0])
    best = min(range(1, UPDATES + 1), key=lambda update: scores[update])
    assert (whole / FOLDER / BEST).read_text() == f"step-{best:06d}"
    assert sorted(path.name for path in (whole / "validation").glob("*.png")) == [
        f"step-{update:06d}.png" for update in range(UPDATES + 1)
    ]
    text = write_report(whole).read_text()
    assert "![energy score](validation.png)" in text
    assert (whole / "report" / "validation.png").stat().st_size > 1000
    lowest = min(range(UPDATES + 1), key=lambda update: scores[update])
    assert f"The lowest score is that of update {lowest}:" in text


def test_validation_does_not_change_the_training(
    whole: Path, tmp_path: Path, configured: Callable, live: Callable
) -> None:
    run = tmp_path / "run"
    assert live(configured(run, validation={"every": 0})).codes == [0]
    assert metrics_of(run) == metrics_of(whole)
    assert not (run / "validation.jsonl").exists()
    assert not (run / FOLDER / BEST).exists()


def unvalidated(run: Path, update: int) -> None:
    """Make a run what it is after `kill -9` between the save and the validation of an update."""
    (run / FOLDER / "latest").write_text(f"step-{update:06d}")
    folders = [checkpoint_folder(run, number) for number in (update - 1, update)]
    before, tree = (json.loads((folder / "manifest.json").read_text()) for folder in folders)
    tree["measure"] = None
    tree["notes"]["energies"] = before["notes"]["energies"]
    tree["notes"]["guard"]["energy"] = before["notes"]["guard"]["energy"]
    (folders[1] / "manifest.json").write_text(json.dumps(tree))
    rows = (run / "validation.jsonl").read_text().splitlines(keepends=True)
    (run / "validation.jsonl").write_text("".join(rows[:update]))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("owed", [True, False])
def test_a_resumed_run_is_equal_also_if_it_owes_a_validation(
    owed: bool, whole: Path, tmp_path: Path, configured: Callable, live: Callable
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    if owed:
        unvalidated(run, 2)
    else:
        (run / FOLDER / "latest").write_text("step-000002")
    life = live(configured(run), "--resume")
    assert life.codes == [0], life.said
    assert validations(run) == validations(whole)
    assert metrics_of(run) == metrics_of(whole)
    assert measures(run) == measures(whole)
    assert (run / FOLDER / BEST).read_text() == (whole / FOLDER / BEST).read_text()
    assert "no validation with these clips" not in life.said


@pytest.mark.timeout(600)
def test_processes_share_the_samples(whole: Path, tmp_path: Path, configured: Callable, live: Callable) -> None:
    """At ZeRO-3, where each process must make the same number of calls, and five clips are no multiple of two."""
    run = tmp_path / "run"
    config = configured(run, updates=1, zero={"stage": 3})
    config["data"] |= {"accumulation": 1}
    life = live(config, processes=2)
    assert life.codes == [0, 0], life.said
    for found, expected in zip(validations(run), validations(whole), strict=False):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.timeout(600)
def test_a_run_of_an_earlier_version_is_compared_from_its_resume_on(
    whole: Path, tmp_path: Path, configured: Callable, live: Callable
) -> None:
    """Its checkpoints have another measure and no scores. `best` then names one of the new checkpoints."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / FOLDER / "latest").write_text("step-000002")
    for update in (1, 2):
        path = checkpoint_folder(run, update) / "manifest.json"
        tree = json.loads(path.read_text())
        tree["measure"] = 1e-9
        del tree["notes"]["energies"]
        path.write_text(json.dumps(tree))
    (run / "validation.jsonl").unlink()
    life = live(configured(run), "--resume")
    assert life.codes == [0], life.said
    assert "Update 2: this run has no validation with these clips" in life.said
    rows = validations(run)
    assert [(row["step"], row["since"]) for row in rows] == [(2, 2), (3, 2), (4, 2)]
    best = min(rows, key=lambda row: row["validation/energy"])["step"]
    assert (run / FOLDER / BEST).read_text() == f"step-{best:06d}"
    assert f"from the score at update 2 ({rows[0]['validation/energy']:.4g})" in write_report(run).read_text()


@pytest.mark.timeout(600)
def test_the_guard_ends_a_run_whose_samples_are_ruined(tmp_path: Path, configured: Callable, live: Callable) -> None:
    """The rate is low for two updates, and then so high that one update spoils the weights."""
    run = tmp_path / "run"
    calm = {"guard": {}, "generator_optimizer": {"lr": 1e-6}}
    assert live(configured(run, updates=2, **calm)).codes == [0]
    wild = configured(run, updates=4, **calm | {"generator_optimizer": {"lr": 0.3}})
    life = live(wild, "--resume")
    assert life.codes == [2]
    assert "the samples become worse: at update 3 validation/energy is above the best one so far" in life.said
    assert (run / FOLDER / "latest").read_text() == "step-000002"
    ruined = read_manifest(checkpoint_folder(run, 3))
    assert ruined.measure is not None
    assert not ruined.healthy
    assert (run / FOLDER / BEST).read_text() != "step-000003"


@pytest.mark.timeout(600)
def test_no_training_reads_a_clip_that_is_held_out(
    tmp_path: Path, dataset_folder: Path, configured: Callable, live: Callable
) -> None:
    """The clips that are held out hold NaN. Two epochs of fine-tuning read every other clip."""
    data = tmp_path / "data"
    shutil.copytree(dataset_folder, data)
    index = LatentDataset(data).index
    held = held_out_samples(index, 4)
    tensors, metadata = read_tensors(data / index.shards[0].file)
    for number in held:
        tensors["latents"][number] = torch.nan
        tensors["image_latents"][number] = torch.nan
    save_file(tensors, data / index.shards[0].file, metadata)
    config = configured(tmp_path / "run", method={"name": "sft"}, updates=8, validation={"every": 0})
    del config["fake_optimizer"]
    config["data"] |= {"dataset": str(data), "held_out": 4}
    life = live(config)
    assert life.codes == [0], life.said
    config["data"] |= {"held_out": 0}
    life = live(config | {"run": str(tmp_path / "other")})
    assert life.codes == [2]
    assert "hold NaN" in life.said or "nan" in life.said.lower()
