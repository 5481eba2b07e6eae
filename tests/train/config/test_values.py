"""What a user writes is what counts: YAML changes no value, and every value that cannot be used is refused by name."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from magicdistill_core.errors import ConfigError
from train.config.page import _places
from train.config.reading import load_config, parse_config
from train.config.sections import OptimizerConfig, Section, takes_text
from train.config.training import TrainConfig


@pytest.fixture
def path(tmp_path: Path, tiny_config: Callable[..., dict], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "run")))
    return path


def field(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("run=runs/try #2", Path("runs/try #2")),
        ("run=2026-11-26", Path("2026-11-26")),
        ("run=123", Path("123")),
        ("run=1.50", Path("1.50")),
        ("run=off", Path("off")),
        ("run=null", Path("null")),
        ("run=[lora]/a: b", Path("[lora]/a: b")),
        ("run=[lora]", Path("[lora]")),
        ("run='[lora] \"x\"'", Path('[lora] "x"')),
        ("run=!x", Path("!x")),
        ("model.teacher=12", "12"),
        ("validation.vae=0x10", "0x10"),
        ("logging.wandb=null", None),
        ("logging.wandb=1:30", "1:30"),
        ("updates=010", 10),
        ("updates=1_000", 1000),
        (" updates = 7\t", 7),
        ("seed=18446744073709551615", 2**64 - 1),
        ("generator_optimizer.lr=1e-5", 1e-5),
        ("generator_optimizer.betas=[1e-1, .5]", (0.1, 0.5)),
        ("model.activation_checkpointing=yes", True),
        ("model.activation_checkpointing=off", False),
        ("guard.action=off", "off"),
        ("zero.stage=03", 3),
    ],
)
def test_values_are_taken_as_written(path: Path, setting: str, expected: object) -> None:
    name = setting.partition("=")[0].strip()
    assert field(load_config(path, [setting]), name) == expected
    assert type(field(load_config(path, [setting]), name)) is type(expected) or isinstance(expected, Path)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("checkpoint.minutes=1:30", r"checkpoint\.minutes: .*number.*'1:30'"),
        ("updates=0x10", r"updates: .*'0x10'"),
        ("updates=1e3", r"updates: .*'1e3'"),
        ("updates=yes", r"updates: .*integer.*'yes'"),
        ("updates=true", r"updates: .*integer.*'true'"),
        ("updates=3 # three", r"updates: .*'3 # three'"),
        ("updates=null", r"updates: .*null"),
        ("updates=", r"'updates='.*no value"),
        ("run= ", r"'run= '.*no value"),
        ("run=''", r"run: .*empty"),
        ('run="a\\nb"', r"run: .*control"),
        ("timeout=inf", r"timeout: .*finite.*'inf'"),
        ("timeout=.nan", r"timeout: .*number"),
        ("timeout=1e9", r"timeout: .*525600"),
        ("generator_optimizer.lr=nan", r"generator_optimizer\.lr: .*finite"),
        ("generator_optimizer.eps=1e999", r"generator_optimizer\.eps: .*finite"),
        ("generator_optimizer.betas=[0.9, 1]", r"generator_optimizer\.betas\.1: .*less than 1"),
        ("seed=18446744073709551616", r"seed: .*18446744073709551615"),
        ("validation.seed=18446744073709551616", r"validation\.seed: "),
        ("schedule.steps=1000000000000", r"schedule\.steps: .*1000"),
        ("method.fake_updates=1000000000000", r"method\.fake_updates: .*1000"),
        ("data.micro_batch=1000000000000", r"data\.micro_batch: .*65536"),
        ("schedule={steps: 2, steps: 3}", r"steps is set twice"),
        ("run=$SCRATCH/x", r"run: .*\$SCRATCH.*shell"),
        ("data.dataset=a/${USER}", r"data\.dataset: .*\$\{USER\}"),
        ("run=~nobody-has-this-name/x", r"run: .*~nobody-has-this-name"),
    ],
)
def test_values_that_cannot_be_used_are_refused(path: Path, setting: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_config(path, [setting])


@pytest.mark.parametrize(
    ("line", "name", "expected"),
    [
        ("run: 2026-11-26", "run", Path("2026-11-26")),
        ("run: 0123", "run", Path("0123")),
        ("run: yes", "run", Path("yes")),
        ("updates: 010", "updates", 10),
        ("guard: {action: off}", "guard.action", "off"),
        ("timeout: &t 7\r\ngenerator_ema: {start: *t}", "generator_ema.start", 7),
        ("zero: {<<: {stage: 1}, stage: 3}", "zero.stage", 3),
        ("fake_optimizer: {lr: 1e-3}", "fake_optimizer.lr", 1e-3),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_say_what_they_show(path: Path, line: str, name: str, expected: object, encoding: str) -> None:
    key = line.partition(":")[0]
    tree = yaml.safe_load(path.read_text())
    tree.pop(key, None)
    path.write_bytes((yaml.safe_dump(tree) + line + "\r\n").encode(encoding))
    assert field(load_config(path), name) == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"updates: 3\nupdates: 4\n", r"updates is set twice, first in line 1, line 2"),
        (b"guard:\n  window: 3\n  'window': 4\n", "window is set twice"),
        (b"run: !!python/object/apply:os.system [exit]\n", "python/object/apply"),
        (b"model:\n\tteacher: pocket\n", "spaces, not tabs, line 2, column 1"),
        ("run: café\n".encode("latin-1"), "UTF-8"),
        (b"run: a\0b\n", "UTF-8"),
        (b"run: a\n---\nrun: b\n", "another document"),
        (b"run: *nothing\n", "alias"),
        (b"[" * 3000, "nested"),
        (b"extends: [a, b]\n", "extends .*Expected"),
        (b"run:\n", "run: .*null"),
        (b"run: !!binary aGVsbG8=\n", "run: expected a path"),
        (b"? [a, b]\n: 1\n", "key"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(path: Path, text: bytes, match: str) -> None:
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=match) as found:
        load_config(path)
    assert "\n" not in str(found.value)


def test_the_home_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(os.environ["HOME"])
    base = home / "base.yaml"
    home.mkdir()
    base.write_text(path.read_text() + "logging: {wandb: ~}\n")
    path.write_text("extends: ~/base.yaml\nrun: ~/magicdistill\nmodel: {null_prompt: ~/a.safetensors, teacher: ~/t}\n")
    config = load_config(path, ["validation.vae=~/vae", "data.dataset=~"])
    assert (config.run, config.data.dataset) == (home / "magicdistill", home)
    assert (config.model.teacher, config.validation.vae) == (f"{home}/t", f"{home}/vae")
    assert config.model.null_prompt == home / "a.safetensors"
    assert config.logging.wandb is None
    # A file of this name is a file; only a home folder that nobody has is an error.
    monkeypatch.chdir(home)
    Path("~backup.safetensors").touch()
    Path("$cache").mkdir()
    config = load_config(path, ["model.teacher=~backup.safetensors", "run=$cache"])
    assert (config.model.teacher, config.run) == ("~backup.safetensors", Path("$cache"))
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without an entry and without HOME
    for text, match in (("extends: ~/base.yaml", "extends"), (base.read_text() + "seed: x\n", "seed: ")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"{match}.*") as found:
            load_config(path, ["run=~/x"])
        assert "home folder is unknown" in str(found.value)


def test_a_folder_whose_own_configuration_says_tilde_has_not_moved(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(os.environ["HOME"]) / "run"
    run.mkdir(parents=True)
    (run / "run.json").touch()
    (run / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"run": "~/run"}))
    assert load_config(run / "config.yaml").run == run
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_saved_configuration_is_read_back_equally(path: Path) -> None:
    settings = ["run=010", "validation.vae=null", "generator_optimizer.lr=1e-5", "guard.action=off", "seed=-7"]
    config = load_config(path, settings)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    assert load_config(path) == config


def test_a_setting_that_is_given_twice(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_config(path, ["updates=3", "updates=3"]).updates == 3
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert load_config(path, ["updates=3", " updates=4"]).updates == 4
    assert "updates" in caplog.text


def test_one_field_of_a_section_that_is_not_set(path: Path) -> None:
    path.write_text(path.read_text() + "generator_ema: null\n")
    config = load_config(path, ["generator_ema.decay=0.5", "method.supervision.weight=2"])
    assert (config.generator_ema.decay, config.method.supervision.weight) == (0.5, 2.0)


def test_files_that_extend_each_other_under_other_names(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.yaml").write_text("extends: ../x/a.yaml")
    with pytest.raises(ConfigError, match="extends"):
        load_config(tmp_path / "x" / "a.yaml")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"updtes": 3}, r"updtes: .*no such field .*did you mean updates\?"),
        ({"zero": {"stge": 3}}, r"zero\.stge: .*did you mean zero\.stage\?"),
        ({"lr": 1}, r"lr: .*generator_optimizer\.lr"),
        ({"method": {"a_wek": 1}}, r" method\.a_wek: .*did you mean method\.a_weak\?"),
        ({"method": {"name": "sft", "levelmean": 1}}, r"method\.levelmean: .*method\.level_mean\?"),
        ({"method": {"name": "w3s"}}, r"method\.name: expected one of w2s, dmd.*'w3s' \(did you mean w2s\?\)"),
        ({"method": "dmd"}, r"method: expected a section.*method\.name.*'dmd'"),
        ({"zero": 3}, r"zero: expected a section.*zero\.stage"),
        ({"guard": {"action": "rolback"}}, r"guard\.action: .*did you mean rollback\?"),
        ({"xyzzy": 1}, r"xyzzy: there is no such field\. "),
        ({"model": {"generator_branch": {"rnk": 1}}}, r"model\.generator_branch\.rnk: .*generator_branch\.rank\?"),
    ],
)
def test_the_nearest_name_is_suggested(
    tmp_path: Path, tiny_config: Callable[..., dict], changes: dict, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_config(tiny_config(tmp_path, **changes), "x.yaml")


def plain_types(annotation: Any) -> set[Any]:
    parts = get_args(annotation)
    return {annotation} if not parts else set().union(*map(plain_types, parts))


def test_every_path_and_text_is_checked() -> None:
    """A new setting that is a plain `Path` or `str` would take `~`, control characters and an empty text."""
    unchecked = []
    for section in (TrainConfig, *_places(), *Section.__subclasses__()):
        for name, info in section.model_fields.items():
            if takes_text(info.annotation) and name != "name" and section.__module__.startswith("train.config"):
                checked = "Validator" in f"{info.metadata} {info.annotation}"
                unchecked += [] if checked else [f"{section.__name__}.{name}"]
    assert not unchecked


@pytest.mark.parametrize("seed", [0, -3, -1, 2**63, 2**64 - 2, 2**64 - 1])
def test_every_seed_can_be_counted_on_from(seed: int) -> None:
    for more in range(3):
        torch.Generator().manual_seed((seed + more) % 2**64)
    assert TrainConfig.model_fields["seed"].annotation is int
    assert OptimizerConfig(lr=1.0).betas == (0.0, 0.999)
