"""Everything that is printed shows names and paths as they are, and printed commands can be copied into a shell."""

import io
import logging
import shlex
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

import train
from train.console import LogHandler, command, progress_bar, show, show_facts
from train.data.dataset import LatentDataset
from train.data.dataset_index import DatasetError

# Markup, an emoji code, a closing mark without an opening one, a number that Rich would colour, and a long path.
NAME = "gen[lora] [/x] [bold]:smile: 10.5/" + "/a long folder" * 30 + "/it's.mp4"


def printed(encoding: str, call: Callable[[], None]) -> str:
    """What a call prints on stdout and stderr, in a terminal of 40 columns."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stream), redirect_stderr(stream):
        patch.setenv("COLUMNS", "40")
        call()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_are_printed_whole(encoding: str) -> None:
    assert printed(encoding, lambda: show(f"Wrote {NAME}")) == f"Wrote {NAME}\n"
    assert printed(encoding, lambda: show(NAME, error=True, style="red")) == f"{NAME}\n"
    facts = printed(encoding, lambda: show_facts({"kind": "[bold]", "where it is": NAME}))
    assert facts.splitlines() == ["kind         [bold]", f"where it is  {NAME}"]


def test_log_messages_are_printed_whole_with_their_traceback() -> None:
    logger = logging.Logger("test")
    logger.addHandler(LogHandler())

    def log() -> None:
        try:
            raise RuntimeError("[lora]")
        except RuntimeError:
            logger.warning("skipped: %s", NAME, exc_info=True)

    first, *rest = printed("utf-8", log).splitlines()
    assert first == f"WARNING  skipped: {NAME}"
    assert rest[-1] == "RuntimeError: [lora]"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "gbk"])
def test_a_name_that_the_terminal_cannot_show(encoding: str) -> None:
    """A file name may be no text, and the terminal may not know its letters."""
    for name in ("caf\udce9.mp4", "caf\u00e9.mp4", "\u8096\u50cf.mp4"):

        def call(name: str = name) -> None:
            show(name)
            with progress_bar(Console(width=200, force_terminal=True, color_system=None)) as bar:
                bar.add_task("portraits", total=1, note=name)

        assert printed(encoding, call).count(".mp4") >= 2


def test_a_progress_bar_shows_names_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with progress_bar(console) as bar:
        bar.add_task("[lora] [/x]", total=2, note="[b] :smile: 1.mp4")
        bar.add_task("no note", total=2)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[lora] [/x]" in shown
    assert "[b] :smile: 1.mp4" in shown
    narrow = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    with progress_bar(narrow) as bar:
        bar.add_task("a", total=2, note="generator/loss 0.1234  generator/gradient_norm 0.1234")
        bar.refresh()
    assert "\ngenerator" not in narrow.file.getvalue()  # type: ignore[attr-defined]
    assert progress_bar(disable=True).disable


@pytest.mark.parametrize("path", ["plain", "my run", "it's #2", "$HOME/*", "~/x", "[a]"])
def test_a_printed_command_names_the_same_file_in_a_shell(path: str) -> None:
    assert shlex.split(command("export", Path(path), "--best")) == ["magicdistill", "export", path, "--best"]


def test_rich_prints_only_in_one_module() -> None:
    """Other modules may show that something is going on, but print no text."""
    folder = Path(train.__file__).parent
    for path in folder.rglob("*.py"):
        text = path.read_text()
        if path != folder / "console.py":
            for word in ("TextColumn(", "rich.table", "rich.logging", ").print(", "console.print(", "typer.echo("):
                assert word not in text, f"{path.relative_to(folder)}: {word}"


def test_the_commands_print_paths_whole(magicdistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import train.watch.report

    monkeypatch.setattr(train.watch.report, "write_report", lambda run: run / NAME)
    status, out, _ = magicdistill("report", tmp_path / "[lora]")
    assert (status, out) == (0, f"Wrote {tmp_path / '[lora]' / NAME}\n")


def test_the_home_folder_in_options(magicdistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import train.tools.export

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COMFYUI_DIR", "~/ComfyUI")
    seen: list[object] = []
    monkeypatch.setattr(train.tools.export, "export_run", lambda *arguments: seen.extend(arguments))
    status, out, err = magicdistill("export", "~/my run", "--out=~/[x].safetensors", "--dtype", "fp16")
    assert status == 0, err
    assert seen == [tmp_path / "my run", tmp_path / "[x].safetensors", "comfyui", None, torch.float16, None]
    assert out == f"Wrote {tmp_path}/[x].safetensors\n"

    import train.comfyui.server

    monkeypatch.setattr(train.comfyui.server, "run_comfyui", lambda *arguments: seen.extend(arguments) or 0)
    assert magicdistill("comfyui", "--dir", "~")[0] == 0
    assert seen[-3:] == [tmp_path / "ComfyUI", tmp_path, 8188]

    status, _, err = magicdistill("export", "~nobody-has-this-name/x", "--out", "y")
    assert status == 2
    assert "~nobody-has-this-name" in err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_of_options_are_finite(magicdistill, tmp_path: Path, value: str) -> None:
    status, _, err = magicdistill("prepare", "--videos", tmp_path, "--out", tmp_path / "x", f"--fps={value}")
    assert status == 2
    assert "--fps" in err
    assert not (tmp_path / "x").exists()


def test_the_command_at_the_end_of_a_training_names_its_folder(
    magicdistill, tmp_path: Path, tiny_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train.run.trainer

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path) | {"run": "~/my [run]"}))
    outcome = train.run.trainer.Outcome(1, None)
    monkeypatch.setattr(train.run.trainer, "train", lambda config, resume: outcome)
    printed = magicdistill("train", path)[1]
    words = shlex.split(printed.partition("with: ")[2])
    assert words[:3] == ["magicdistill", "export", str(tmp_path / "home" / "my [run]")]


def test_advice_to_run_a_command_names_the_folder_for_a_shell(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as found:
        LatentDataset(tmp_path / "my clips")
    words = shlex.split(str(found.value).split("`")[1])
    assert words == ["magicdistill", "prepare", "--videos", "DIR", "--out", str(tmp_path / "my clips")]
