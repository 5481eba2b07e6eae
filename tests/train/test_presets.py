"""The presets: their headers state GPUs and batch, and their settings suit what they train."""

import re
from itertools import takewhile
from pathlib import Path

import pytest

import train
from train.config.methods import DMDConfig
from train.config.reading import load_config

PRESET_FOLDER = Path(train.__file__).parent / "presets"
PRESETS = sorted(PRESET_FOLDER.glob("*.yaml"))


def header(path: Path) -> str:
    """The comment at the start of a preset."""
    lines = path.read_text().splitlines()
    return " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


@pytest.mark.parametrize("path", [path for path in PRESETS if not path.stem.startswith("pocket")], ids=lambda p: p.stem)
def test_presets_say_what_batch_they_make_on_which_gpus(path: Path) -> None:
    gpus, batch = (re.search(pattern, header(path)) for pattern in (r"(\d+) GPUs", r"batch of (\d+)"))
    assert gpus is not None
    assert batch is not None
    data = load_config(path).data
    assert int(batch[1]) == int(gpus[1]) * data.micro_batch * data.accumulation


def test_every_13b_lora_lets_tiny_gradients_through() -> None:
    """Adam's epsilon must be smaller than a LoRA's gradients (about 1e-9), or the loss must be scaled up."""
    trained = 0
    for path in PRESETS:
        config = load_config(path)
        if config.model.teacher == "pocket":
            continue
        optimizers = {"fake": (config.fake_optimizer, getattr(config.method, "fake_loss_scale", 1.0))}
        if config.model.mode == "lora":
            optimizers["generator"] = (config.generator_optimizer, 1.0)
        for optimizer, scale in optimizers.values():
            if optimizer is not None:
                trained += 1
                assert optimizer.eps < 0.1 * 1e-9 * scale, path.name
    assert trained >= 4


def test_the_lora_preset_differs_from_the_full_one_only_where_a_lora_needs_it() -> None:
    full, lora = (load_config(PRESET_FOLDER / f"hunyuan_i2v_w2s_4step{name}.yaml") for name in ("", "_lora"))
    assert (full.model.mode, lora.model.mode) == ("full", "lora")
    assert lora.generator_optimizer.lr >= 10 * full.generator_optimizer.lr
    same = ("method", "data", "schedule", "zero", "updates", "validation", "checkpoint")
    assert {name: getattr(full, name) for name in same} == {name: getattr(lora, name) for name in same}


def test_dmd_has_a_preset_of_its_own() -> None:
    assert load_config(PRESET_FOLDER / "hunyuan_i2v_dmd_4step.yaml").method == DMDConfig()
