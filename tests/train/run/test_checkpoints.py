"""Exact resumes with the same and other numbers of processes, and errors for damaged or different checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.errors import CheckpointError, ConfigError
from magicdistill_core.safetensors_file import read_tensors
from tests.makers import json_lines, metrics_of
from train.config.reading import parse_config
from train.run.checkpoints import verified
from train.run.trainer import train
from train.run_folder import checkpoint_folder, checkpoint_updates, read_manifest

# Everything that a run can train or keep in addition to the generator and the fake branch.
ADDITIONS = {
    "method": {"name": "dmd2", "fake_updates": 2, "discriminator": {"optimizer": {"lr": 1e-3}, "weight": 0.5}},
    "generator_ema": {"decay": 0.5, "start": 1},
}


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint holds: exported weights, and the engines' states by parameter, kind and place."""
    folder = run / "checkpoints" / f"step-{step:06d}"
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        of = file.parent.name if file.parent != folder else file.name
        found |= {f"{of}/{name}": tensor for name, tensor in read_tensors(file)[0].items()}
    return found


def assert_same_run(found: Path, expected: Path, step: int) -> None:
    """Bit for bit: weights, masters, moments, and the metrics of every round."""
    left, right = tensors(found, step), tensors(expected, step)
    assert left.keys() == right.keys()
    assert any("exp_avg:" in name for name in left)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert metrics_of(found) == metrics_of(expected)


def branch(whole: Path, parts: Path, step: int) -> None:
    """Copy a run and make an earlier checkpoint its newest."""
    shutil.copytree(whole, parts)
    (parts / "checkpoints" / "latest").write_text(f"step-{step:06d}")


def assert_size_was_foreseen(run: Path) -> None:
    """The size computed before the first update equals the size of a checkpoint without the headers of its files."""
    computed = json.loads((run / "events.jsonl").read_text().splitlines()[0])["checkpoint_bytes"]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors(run, 3).values())
    assert computed == held


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("mode", "precision", "stage", "processes"),
    [("full", "bf16", 2, 1), ("lora", "fp32", 2, 2), ("full", "bf16", 2, 2), ("lora", "bf16", 3, 2)],
)
def test_resume_continues_bit_exactly(
    mode: str, precision: str, stage: int, processes: int, tmp_path: Path, tiny_config: Callable, live: Callable
) -> None:
    """Three updates at once equal one, new processes, and two more."""
    config = tiny_config(tmp_path / "whole", updates=3, zero={"stage": stage}, checkpoint={"every": 1, "keep": 3})
    config["model"] |= {"mode": mode, "precision": precision}
    if (mode, processes) == ("full", 2):
        config |= ADDITIONS
    done = live(config, processes=processes)
    assert done.codes == [0] * processes, done.said
    branch(tmp_path / "whole", tmp_path / "parts", 1)
    done = live(config | {"run": str(tmp_path / "parts")}, "--resume", processes=processes)
    assert done.codes == [0] * processes, done.said
    assert_same_run(tmp_path / "parts", tmp_path / "whole", 3)
    assert_size_was_foreseen(tmp_path / "whole")
    first, last = tensors(tmp_path / "whole", 1), tensors(tmp_path / "whole", 3)
    assert any(not torch.equal(first[name], last[name]) for name in first)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("before", "after", "stages"), [(2, 1, (2, 2)), (1, 2, (2, 3))])
def test_a_run_continues_equally_on_another_number_of_processes(
    before: int, after: int, stages: tuple[int, int], tmp_path: Path, tiny_config: Callable, live: Callable
) -> None:
    """The same global batch on other processes, and at another ZeRO stage: equal up to the order of sums."""

    def config(run: str, processes: int, stage: int) -> dict:
        tree = tiny_config(tmp_path / run, updates=3, zero={"stage": stage}, checkpoint={"every": 1, "keep": 3})
        if before == 2:
            tree |= ADDITIONS
        tree["data"]["accumulation"] = 2 // processes
        return tree

    done = live(config("whole", before, stages[0]), processes=before)
    assert done.codes == [0] * before, done.said
    branch(tmp_path / "whole", tmp_path / "parts", 1)
    wrong = config("parts", after, stages[1])
    wrong["data"]["accumulation"] = 3
    record = (tmp_path / "parts" / "config.yaml").read_text()
    refused = live(wrong, "--resume", processes=after)
    assert set(refused.codes) == {2}
    assert f"data.accumulation={2 // after}" in refused.said
    assert (tmp_path / "parts" / "config.yaml").read_text() == record
    done = live(config("parts", after, stages[1]), "--resume", processes=after)
    assert done.codes == [0] * after, done.said
    for name in ("generator.safetensors", "fake_lora.safetensors"):
        start, *ends = (
            read_tensors(tmp_path / run / "checkpoints" / f"step-{step:06d}" / name)[0]
            for run, step in (("whole", 1), ("whole", 3), ("parts", 3))
        )
        for key, was in start.items():
            moved = (ends[0][key] - was).norm()
            assert (ends[1][key] - ends[0][key]).norm() <= 2e-2 * moved + 1e-9, key
        assert any((ends[0][key] - was).norm() > 1e-4 for key, was in start.items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one finished run that several tests look at; they copy what they damage."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path, tiny_config: Callable, live: Callable) -> Path:
    """A copy of a run of three updates that keeps two checkpoints."""
    if not finished.exists():
        done = live(tiny_config(finished, updates=3, checkpoint={"every": 1, "keep": 1}))
        assert done.codes == [0], done.said
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_without_validation_no_checkpoint_is_the_best(run: Path) -> None:
    assert checkpoint_updates(run / "checkpoints") == [3]
    manifest = read_manifest(checkpoint_folder(run))
    assert (manifest.update, manifest.healthy, manifest.measure) == (3, True, None)
    assert manifest.counters == {"generator": 3, "fake": 6}
    with pytest.raises(CheckpointError, match=r"validation\.every"):
        checkpoint_folder(run, best=True)


def test_another_method_is_refused_and_changed_settings_are_reported(
    run: Path, tmp_path: Path, tiny_config: Callable, live: Callable
) -> None:
    """A refused resume does not change the run's record; an accepted one reports the changed settings."""
    records = [run / "run.json", run / "config.yaml"]
    before = [path.read_text() for path in records]
    other = tiny_config(run, updates=4, method={"name": "dmd", "fake_updates": 2}, generator_optimizer={"lr": 1.0})
    refused = live(other, "--resume")
    assert refused.codes == [2]
    for fact in (str(run), "w2s", "dmd", "method.name=w2s", "run=FOLDER"):
        assert fact in refused.said
    assert [path.read_text() for path in records] == before
    config = tiny_config(run, updates=4, generator_optimizer={"lr": 2e-3, "clip": 0.5})
    done = live(config, "--resume", report=True)
    assert done.codes == [0], done.said
    events = json_lines(run / "events.jsonl")
    resumed = next(event for event in events if event["event"] == "resumed")
    # The checkpoint is of the run that this one was copied from.
    assert resumed["changed"].pop("run")[1] == str(run)
    keep = resumed["changed"].pop("checkpoint.keep"), resumed["changed"].pop("checkpoint.every")
    assert keep == ([1, 2], [1, 100])
    assert resumed["changed"] == {"updates": [3, 4], "generator_optimizer.lr": [1e-3, 2e-3]}
    assert "generator_optimizer.lr: 0.001, now 0.002" in (run / "report" / "report.md").read_text()


def test_damage_is_named(run: Path, tiny_config: Callable, live: Callable) -> None:
    """A changed byte, a file that is too short, one that is missing, no manifest, no pointer."""
    shard = next((run / "checkpoints" / "step-000003" / "state" / "fake").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert verified(run).name == "step-000003"  # the size is right: the checksum is what tells
    refused = live(tiny_config(run, updates=4), "--resume")
    assert refused.codes == [2]
    assert "state/fake/process-00000-000.safetensors (wrong checksum)" in refused.said
    shard.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"damaged.*fake/process.*\(\d+ bytes, expected \d+ bytes\)"):
        verified(run)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"fake/process.*\(missing, expected \d+ bytes\)"):
        verified(run)
    (run / "checkpoints" / "step-000003" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="manifest"):
        verified(run)
    (run / "checkpoints" / "latest").unlink()
    with pytest.raises(CheckpointError, match="latest"):
        verified(run)


def test_a_teacher_that_changed_is_refused(
    run: Path, tmp_path: Path, tiny_config: Callable, live: Callable, teacher_file: Path
) -> None:
    other = tmp_path / "other.safetensors"
    teacher = load_checkpoint(teacher_file)
    state = {name: tensor + 1e-3 for name, tensor in teacher.state.items()}
    assert teacher.recipe is not None
    save_checkpoint(other, state, teacher.recipe, teacher.null_prompt)
    config = tiny_config(run, updates=4)
    before = (run / "run.json").read_text()
    refused = live(config | {"model": config["model"] | {"teacher": str(other)}}, "--resume")
    assert refused.codes == [2]
    assert f"teacher other than {other}" in refused.said
    assert (run / "run.json").read_text() == before
    assert verified(run).name == "step-000003"
    done = live(config, "--resume")
    assert done.codes == [0], done.said


def test_a_run_is_not_overwritten(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="--resume"):
        train(parse_config(tiny_config(tmp_path), "test"))


def test_resume_without_a_run(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    with pytest.raises(CheckpointError, match=r"/none .*run\.json"):
        train(parse_config(tiny_config(tmp_path / "none"), "test"), resume=True)
