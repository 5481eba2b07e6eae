"""Reading configurations: presets, overrides, and errors that name the field."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import train
from magicdistill_core.errors import ConfigError
from train.config.reading import load_config, parse_config, parse_settings
from train.config.run import GuardConfig
from train.config.sections import OptimizerConfig, Section

PRESETS = sorted((Path(train.__file__).parent / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid(path: Path) -> None:
    config = load_config(path, ["data.dataset=elsewhere"])
    assert config.data.dataset == Path("elsewhere")
    if config.method.name in ("w2s", "one_step"):
        assert config.method.a_weak == 0.25
        assert config.schedule.steps == (1 if config.method.name == "one_step" else 4)


def test_presets_write_to_folders_of_their_own() -> None:
    runs = [load_config(path).run for path in PRESETS]
    assert len(set(runs)) == len(runs)


def test_a_file_holds_only_what_differs_from_the_one_it_extends(
    tmp_path: Path, tiny_config: Callable[..., dict]
) -> None:
    base = tiny_config(tmp_path, method={"name": "w2s", "a_weak": 0.5, "normalize": False})
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    same = {"extends": "base.yaml", "method": {"a_weak": 0.75}, "generator_optimizer": {"lr": 1e-5}}
    other = {"extends": "same.yaml", "method": {"name": "dmd"}}
    for name, tree in (("same", same), ("other", other)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(tmp_path / "same.yaml")
    assert (config.method.a_weak, config.method.normalize) == (0.75, False)
    assert (config.generator_optimizer.lr, config.generator_optimizer.clip) == (1e-5, 0.5)
    config = load_config(tmp_path / "other.yaml", ["updates=7"])
    # Another method starts with its own defaults. All other settings are inherited through both files.
    assert (config.method.name, config.method.normalize, config.updates) == ("dmd", True, 7)
    assert config.generator_optimizer.lr == 1e-5


def test_files_that_extend_each_other_or_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(ConfigError, match=r"b\.yaml extends a\.yaml.* b\.yaml.*`extends`"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("extends: c.yaml")
    with pytest.raises(ConfigError, match=r"c\.yaml .*read"):
        load_config(tmp_path / "a.yaml")


def test_there_are_presets() -> None:
    assert len(PRESETS) >= 2


def test_misspelt_fields_are_named(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    tree = tiny_config(tmp_path)
    tree["model"]["precison"] = "bf16"
    tree["updtes"] = 3
    with pytest.raises(ConfigError, match=r"x\.yaml.*model\.precison: .*no such field.*updtes: "):
        parse_config(tree, "x.yaml")


def test_wrong_values_and_missing_fields_are_named(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    tree = tiny_config(tmp_path, zero={"stage": 7})
    del tree["updates"]
    with pytest.raises(ConfigError, match=r"x\.yaml.*updates: .*required.*zero\.stage: "):
        parse_config(tree, "x.yaml")


def test_overrides(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path)))
    config = load_config(path, ["zero.stage=3", "model.mode=lora", "generator_optimizer.lr=2e-5", "schedule.steps=1"])
    assert (config.zero.stage, config.model.mode, config.generator_optimizer.lr) == (3, "lora", 2e-5)
    with pytest.raises(ConfigError, match=r"zero\.stge: .*no such field"):
        load_config(path, ["zero.stge=3"])
    with pytest.raises(ConfigError, match="key=value"):
        load_config(path, ["zero.stage"])
    with pytest.raises(ConfigError, match=r"updates\.x=1.*value.*fields"):
        load_config(path, ["updates.x=1"])


def test_a_setting_that_a_shell_has_split(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path)))
    config = load_config(path, ["method={name: dmd}"])
    assert config.method.name == "dmd"
    with pytest.raises(ConfigError, match=r"'method=\{name:'.*quotes.*'method=\{name: dmd\}'"):
        load_config(path, ["method={name:", "dmd}"])


def test_the_guard_is_off_without_quotes(tmp_path: Path, tiny_config: Callable[..., dict]) -> None:
    """YAML reads an unquoted `off` as false."""
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path)))
    assert load_config(path, ["guard.action=off"]).guard.action == "off"
    path.write_text(path.read_text() + "guard:\n  action: off\n")
    assert load_config(path).guard.action == "off"
    with pytest.raises(ConfigError, match=r"guard\.action"):
        load_config(path, ["guard.action=on"])


def test_the_configuration_of_a_moved_or_copied_run_uses_the_new_folder(
    tmp_path: Path, tiny_config: Callable[..., dict], caplog: pytest.LogCaptureFixture
) -> None:
    first, copy = tmp_path / "first", tmp_path / "copy"
    for folder in (first, copy):
        folder.mkdir()
        (folder / "run.json").touch()
        (folder / "config.yaml").write_text(yaml.safe_dump(tiny_config(first)))
    assert load_config(first / "config.yaml").run == first
    assert load_config(copy / "config.yaml", [f"run={first}"]).run == first
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert load_config(copy / "config.yaml").run == copy
    for path in (copy / "config.yaml", first, f"run={first}"):
        assert str(path) in caplog.text
    # Only a run's own configuration follows its folder: any other file keeps the run that it names.
    (copy / "other.yaml").write_text((copy / "config.yaml").read_text())
    assert load_config(copy / "other.yaml").run == first
    (copy / "run.json").unlink()
    assert load_config(copy / "config.yaml").run == first


@pytest.mark.parametrize(
    ("text", "match"),
    [("[1, 2]", "YAML mapping"), ("a: [", r"c\.yaml .*YAML file: .*line 1, column 5"), ("", "YAML mapping")],
)
def test_files_without_a_configuration_are_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml .*read"):
        load_config(tmp_path / "none.yaml")


def test_a_setting_changes_one_field_of_a_default_section() -> None:
    class Stage(Section):
        updates: int = 3
        optimizer: OptimizerConfig = OptimizerConfig(lr=0.5, warmup=7)

    stage = parse_settings(Stage, ["optimizer.clip=2", "updates=9"])
    assert stage == Stage(updates=9, optimizer=OptimizerConfig(lr=0.5, warmup=7, clip=2.0))
    with pytest.raises(ConfigError, match=r"optimizer\.lrr.*no such field"):
        parse_settings(Stage, ["optimizer.lrr=2"])


def test_settings_of_earlier_versions_are_left_out_of_a_run_and_refused_elsewhere(
    tmp_path: Path, tiny_config: Callable[..., dict], caplog: pytest.LogCaptureFixture
) -> None:
    raw = tiny_config(tmp_path) | {"guard": {"distance_ceiling": 5.0, "gradient_ceiling": 4.0, "patience": 7}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"guard\.distance_ceiling: there is no such field"):
        load_config(path)
    (tmp_path / "run.json").write_text("{}")
    with caplog.at_level("INFO"):
        assert load_config(path).guard == GuardConfig(patience=7)
    assert "guard.distance_ceiling=5.0 no longer exists; see guard.relative_distance_ceiling" in caplog.text


def test_a_run_of_an_earlier_version_trains_on_all_samples(
    tmp_path: Path, tiny_config: Callable[..., dict], caplog: pytest.LogCaptureFixture
) -> None:
    """Its configuration does not mention `data.held_out`. A new configuration, and a saved one of today, do."""
    raw = tiny_config(tmp_path)
    raw["checkpoint"]["measure"] = "generator/loss"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    (tmp_path / "run.json").write_text("{}")
    with caplog.at_level("INFO"):
        assert load_config(path).data.held_out == 0
    assert "data.held_out is 0" in caplog.text
    assert "checkpoint.measure=generator/loss no longer exists; see validation.every" in caplog.text
    today = load_config(path).model_copy(update={"data": parse_config(tiny_config(tmp_path), "x").data})
    path.write_text(yaml.safe_dump(today.model_dump(mode="json")))
    assert load_config(path).data.held_out is None
