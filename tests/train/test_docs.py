"""The documentation's commands are valid, and its sizes match the networks."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from accelerate import init_empty_weights

from benchmarks.sizes import HUNYUAN_13B
from magicdistill_core.layouts.lora import lora_state
from train.cli import app
from train.config.reading import load_config
from train.networks.network import build_network
from train.networks.roles import add_branch, branch_modules, branch_parameters

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TRAIN_YOUR_OWN, TRAINING = ROOT / "docs" / "train-your-own.md", ROOT / "docs" / "training.md"
MEMORY = ROOT / "docs" / "memory.md"


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's code blocks that run `magicdistill` or `torchrun`, split into words."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    typed = [shlex.split(line, comments=True) for line in lines]
    return [words for words in typed if {"magicdistill", "torchrun"} & set(words[:3])]


def arguments(words: list[str]) -> list[str]:
    """The arguments of `magicdistill`, also if torchrun starts it."""
    start = words.index("-m") + 1 if "torchrun" in words else words.index("magicdistill")
    return words[start + 1 :]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_are_valid(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        command, rest = typer.main.get_command(app), arguments(words)
        while hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        given = command.make_context(words[0], list(rest)).params
        if command.name == "train" and given["config"].is_relative_to("train"):
            overrides = [text for text in given["overrides"] or [] if text != "KEY=VALUE"]
            load_config(given["config"], [text for text in overrides if text != "..."])


def test_programs_of_the_environment_are_started_through_uv() -> None:
    for page in (TRAIN_YOUR_OWN, TRAINING, ROOT / "README.md"):
        assert {tuple(words[:2]) for words in commands(page)} <= {("uv", "run")}
        assert not re.findall(r"`(?:torchrun|deepspeed) -", page.read_text())


def test_every_step_from_a_folder_to_comfyui_is_there_in_order() -> None:
    done = [arguments(words) for words in commands(TRAIN_YOUR_OWN)]
    large = done[[words[0] for words in done].index("inspect") :]
    order = list(dict.fromkeys(words[0] for words in large))
    assert order == ["inspect", "encode-prompt", "prepare", "plan", "train", "export", "sample"]
    # The output path of each command is the input path of the next one.
    files = {words[0]: words for words in large if "--resume" not in words}
    preset = load_config(ROOT / next(text for text in files["train"] if text.endswith(".yaml")))
    assert str(preset.model.null_prompt) in files["encode-prompt"]
    assert str(preset.data.dataset) in files["prepare"]
    vae = files["prepare"][files["prepare"].index("--vae") + 1]
    assert f"validation.vae={vae}" in files["train"]
    assert vae == files["sample"][files["sample"].index("--vae") + 1]
    run = next(text for text in files["train"] if text.startswith("run=")).removeprefix("run=")
    assert all(words[1] == run for words in large if words[0] == "export")
    assert files["sample"][1] in [words[words.index("--out") + 1] for words in large if words[0] == "export"]


def test_disk_is_computed_from_the_network() -> None:
    with init_empty_weights():
        network = build_network(HUNYUAN_13B)
        weights = sum(parameter.numel() for parameter in network.parameters())
        add_branch(network, "fake", 64, 64.0, 0)
    branch = sum(parameter.numel() for parameter in branch_parameters(network, "fake"))
    page = " ".join(TRAINING.read_text().split())

    def gigabytes(number: float) -> str:
        return f"{number / 1e9:.0f} GB"

    lora = lora_state(branch_modules(dict(network.named_parameters()), "fake", 64.0, HUNYUAN_13B.hidden))
    file = 2 * sum(tensor.numel() for tensor in lora.values())
    whole, branches = 14 * weights + 12 * branch + file, 2 * (12 * branch + file)
    # A run keeps at most six checkpoints: `checkpoint.keep` of the presets, and three more.
    most = f"{6 * whole / 1e12:.1f} TB"
    assert f"| `w2s`, mode `full` | {gigabytes(whole)} | {most} |" in page
    average = f"{gigabytes(18 * weights)} | {6 * 18 * weights / 1e12:.1f} TB"
    assert f"| `sft`, mode `full`, with a moving average | {average} |" in page
    assert f"| `w2s`, mode `lora` | {gigabytes(branches)} | {gigabytes(6 * branches)} |" in page
    own_pages = " ".join(TRAIN_YOUR_OWN.read_text().split())
    assert f"{most} of disk instead of {gigabytes(6 * branches)}" in own_pages


def test_memory_equals_the_memory_page() -> None:
    def in_all(preset: str) -> str:
        row = re.search(rf"^\| {preset} \| 8 \| 129 frames at 544x960 \|(.*)\|$", MEMORY.read_text(), re.M)
        assert row is not None
        return f"{float(row[1].split('|')[-2]):.0f}"

    whole, lora = in_all("hunyuan_i2v_w2s_4step"), in_all("hunyuan_i2v_w2s_4step_lora")
    assert f"GPU then holds {whole} GB instead of {lora} GB" in " ".join(TRAIN_YOUR_OWN.read_text().split())
