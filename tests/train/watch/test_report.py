"""The report of a run, written from the run's folder."""

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import yaml
from PIL import Image

from magicdistill_core.errors import CheckpointError, ConfigError
from train.config.reading import parse_config
from train.run_folder import Manifest
from train.watch.plots import extremes, running_median
from train.watch.report import write_report

UPDATES = 60


@pytest.fixture
def run(tmp_path: Path, tiny_config: Callable[..., dict]) -> Path:
    """An artificial run folder with 60 updates, a best checkpoint, samples and one rollback."""
    run = tmp_path / "portraits"
    config = parse_config(tiny_config(run, updates=UPDATES), "test")
    (run / "validation").mkdir(parents=True)
    (run / "checkpoints" / "step-000040").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (run / "run.json").write_text(json.dumps({"teacher": "/models/teacher.safetensors", "mode": "full"}))
    for name in ("latest", "best"):
        (run / "checkpoints" / name).write_text("step-000040")
    manifest = Manifest(40, {}, {}, 0.0321, True, {})
    (run / "checkpoints" / "step-000040" / "manifest.json").write_text(manifest.to_json())
    rows = [
        {
            "step": step,
            "fake/loss": math.exp(-step / 30),
            "generator/loss": 0.5,
            "generator/motion": 0.3 + 0.05 * math.sin(step),
            "generator/real_fake_distance": 0.04,
            "guard/motion": 0.9,
            "seconds": 2.0,
        }
        for step in range(1, UPDATES + 1)
    ]
    write_lines(run / "metrics.jsonl", rows)
    write_lines(run / "metrics-abandoned.jsonl", rows[30:35])
    machine = {"device": "a GPU", "processes": 8, "python": "3.11", "versions": {"torch": "2.11"}}
    write_lines(
        run / "events.jsonl",
        [
            {"event": "started", "step": 0, "time": 1e9, **machine},
            {"event": "saved", "step": 40, "time": 1e9 + 80},
            {"event": "went back", "step": 40, "time": 1e9 + 90, "failed": 45, "findings": ["a | b"]},
            {"event": "finished", "step": 60, "time": 1e9 + 120},
        ],
    )
    for step in range(5, 61, 5):
        Image.new("RGB", (8, 8)).save(run / "validation" / f"step-{step:06d}.png")
    (run / "validation" / "step-000060.mp4").touch()
    return run


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_report_contains_settings_measures_and_commands(run: Path) -> None:
    text = write_report(run).read_text()
    for said in (
        "# portraits",
        "Finished: 60 updates",
        "w2s (full, fp32)",
        "/models/teacher.safetensors",
        "Samples per update | 16",  # 1 x 2 x 8 processes
        "Time spent in updates | 0:02:00",
        "2 s (median)",
        "a GPU, 8 process(es), ZeRO-2",
        "torch 2.11",
        "(0.90 x its baseline)",
        "went back | a \\| b",
        "saved at updates 40",
        f"magicdistill export {run} --best",
        "update 40, energy score 0.0321",
        "There are no validations",
        f"magicdistill train {run / 'config.yaml'} --resume",
        "a_weak: 0.25",
        "[video](../validation/step-000060.mp4)",
    ):
        assert said in text, said
    assert text.count("![samples") == 6
    for step in (5, 60):
        assert f"../validation/step-{step:06d}.png" in text


def test_a_signal_below_its_noise_is_said_in_words(run: Path) -> None:
    """The measurements of a run in bf16 whose branch learned too slowly, and of one that began with a warm-up."""
    rows = [{"step": step, "fake/loss": 1.0, "generator/loss": 0.5, "seconds": 1.0} for step in range(-4, 101)]
    measured = {0: (0.39, 0.2), 50: (0.63, 0.6), 100: (0.65, 0.83)}
    for row in rows:
        if row["step"] in measured:
            row["signal/agreement"], row["signal/generator_below_eps"] = measured[row["step"]]
    write_lines(run / "metrics.jsonl", rows)
    text = write_report(run).read_text()
    for said in (
        "| signal/agreement | 0.39 (update 0) | 0.39 (update 0) | 0.65 (update 100) |",
        "| signal/generator_below_eps | 0.2 (update 0) | 0.83 (update 100) | 0.83 (update 100) |",
        "below the rounding noise of bf16: signal/agreement is 0.65",
        "method.fake_warmup",
        "83 % of the weights of the role generator are below 1e-08; lower generator_optimizer.eps",
        "Time per update | 1 s",
    ):
        assert said in text, said
    for row in rows:
        if row["step"] in measured:
            row |= {"signal/agreement": 0.39 if row["step"] == 0 else 0.97, "signal/generator_below_eps": 0.01}
    write_lines(run / "metrics.jsonl", rows)
    text = write_report(run).read_text()
    assert "When the generator began to learn, the signal was still below" in text
    assert "At the last measurement" not in text
    for row in rows:
        row.pop("signal/agreement", None)
    rows[-1]["signal/agreement"] = 0.97
    write_lines(run / "metrics.jsonl", rows)
    assert "The training signal was above its noise." in write_report(run).read_text()


def test_a_run_that_ended_in_its_fake_warm_up_has_a_report(run: Path) -> None:
    write_lines(run / "metrics.jsonl", [{"step": step, "fake/loss": 0.5, "seconds": 1.0} for step in (-9, -8)])
    write_lines(run / "events.jsonl", [{"event": "stopped", "step": -8, "time": 1e9, "by": "SIGTERM"}])
    report = write_report(run)
    assert "Stopped by SIGTERM at update 0 of 60" in report.read_text()
    assert (report.parent / "guard.png").exists()  # the loss of the fake branch


def test_the_report_has_its_pictures(run: Path) -> None:
    report = write_report(run)
    for name in ("losses.png", "guard.png"):
        assert f"]({name})" in report.read_text()
        with Image.open(report.parent / name) as picture:
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20) or ()) > 10
    assert write_report(run) == report  # written again over itself


def test_validations_are_shown_with_their_intervals(run: Path) -> None:
    """Those before update 30 were of other clips. A score that is not finite is no lowest one."""
    rows = [
        {"step": step, "since": since, "validation/energy": 2 + shift, "validation/difference": shift}
        | ({"validation/standard_error": 0.01} if step > 30 else {})
        for step, since, shift in ((10, 0, -0.9), (30, 30, 0.0), (40, 30, -0.2), (50, 30, -0.3), (60, 30, math.nan))
    ]
    write_lines(run / "validation.jsonl", rows)
    text = write_report(run).read_text()
    for said in (
        "from the score at update 30 (2)",
        "lowest score is that of update 50: -0.3 ± 0.0196 (95 %)",
        "The best checkpoint, the healthy one with the lowest score, is that of update 40.",
        "![energy score](validation.png)",
    ):
        assert said in text, said
    with Image.open(run / "report" / "validation.png") as picture:
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20) or ()) > 10


def test_the_guards_reason_is_at_the_top(run: Path) -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "ended by the guard", "step": 60, "time": 1e9, "findings": ["no motion"]}))
    lines = write_report(run).read_text().splitlines()
    for fact in ("guard", "update 60 of 60", "no motion"):
        assert fact in lines[2]


def test_a_young_run_without_samples_or_guarded_quantities(run: Path) -> None:
    write_lines(run / "metrics.jsonl", [{"step": 1, "generator/loss": 0.5, "seconds": 1.0}])
    for name in ("events.jsonl", "metrics-abandoned.jsonl"):
        (run / name).unlink()
    for sheet in (run / "validation").iterdir():
        sheet.unlink()
    text = write_report(run).read_text()
    assert "validation.every" in text
    assert "guard.png" not in text


def test_no_run_and_no_update_are_refused(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=f"{run} .*no update"):
        write_report(run)
    (run / "run.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{run} .*run\.json"):
        write_report(run)


def test_damaged_and_infinite_values_do_not_end_the_report(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    broken = {"step": 60, "fake/loss": math.nan, "generator/motion": math.inf, "generator/loss": -math.inf}
    lines[-1:] = [json.dumps(broken | {"seconds": 2.0}), "17", '{"fake/loss": 3}', '{"step": 61, "fake/l']
    (run / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\xff\0")
    with (run / "events.jsonl").open("a") as file:
        file.write('[]\n{"event": "saved"}\n{"event": "went ba')
    text = write_report(run).read_text()
    for said in ("Finished: 60 updates", "| generator/motion | 0.3", "](losses.png)", "](guard.png)"):
        assert said in text, said
    assert "nan" not in text.lower().replace("nan or infinite", "")


def test_a_metric_that_begins_after_the_baseline(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows[45:]:
        row["generator/temporal_variance"] = 0.1
    write_lines(run / "metrics.jsonl", rows)
    assert "generator/temporal_variance" in write_report(run).read_text()


def test_a_damaged_configuration_is_named(run: Path) -> None:
    (run / "config.yaml").write_text("run: [")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        write_report(run)
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        write_report(run)


def test_the_commands_of_the_report_name_the_folder(run: Path) -> None:
    moved = run.rename(run.with_name("my [run] #2"))
    lines = write_report(moved).read_text().splitlines()
    printed = [shlex.split(line, comments=True) for line in lines if line.startswith("    magicdistill ")]
    assert [words[2] for words in printed] == [str(moved), str(moved), str(moved / "config.yaml")]


@pytest.mark.parametrize("window", [1, 4, 20])
def test_the_running_median(window: int) -> None:
    values = np.random.default_rng(0).standard_normal(50)
    values[[0, 7, 8, 30]] = np.nan
    found = running_median(values, window)
    for place in range(50):
        seen = [v for v in values[max(0, place + 1 - window) : place + 1] if not math.isnan(v)]
        expected = median(seen) if seen else math.nan
        assert found[place] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("count", [1, 3999, 4000, 50123])
def test_a_long_curve_is_drawn_with_a_bounded_number_of_points(count: int) -> None:
    steps, values = np.arange(count, dtype=float), np.random.default_rng(0).standard_normal(count)
    values[count // 2 : count // 2 + 300] = np.nan
    drawn, heights = extremes(steps, values)
    assert len(drawn) == len(heights) <= 4000
    assert (np.diff(drawn) >= 0).all()
    for pick in (np.nanmin, np.nanmax):
        if count > 1:
            assert pick(heights) == pick(values)
