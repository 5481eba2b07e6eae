"""The presets: their headers state GPUs and batch, and their settings suit what they train."""

import re
from itertools import takewhile
from pathlib import Path

import pytest

import train
from train.config.methods import DMDConfig, MatchingConfig
from train.config.reading import load_config

PRESET_FOLDER = Path(train.__file__).parent / "presets"
# Trainings of another kind: the demo must be short, and the teacher learns from scratch.
DIFFERENT = ("pocket_demo", "pocket_teacher")
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
    config = load_config(path)
    samples = config.data.micro_batch * config.data.accumulation
    assert int(batch[1]) == int(gpus[1]) / config.context_parallel * samples


def test_every_13b_lora_lets_tiny_gradients_through() -> None:
    """Adam's epsilon must be smaller than a LoRA's gradients (about 1e-9), or the loss must be scaled up."""
    trained = 0
    for path in PRESETS:
        config = load_config(path)
        if path.stem.startswith("pocket"):
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
    w2s, dmd = (load_config(PRESET_FOLDER / f"hunyuan_i2v_{name}_4step.yaml") for name in ("w2s", "dmd"))
    assert dmd.method == DMDConfig(fake_warmup=w2s.method.fake_warmup)
    assert (dmd.generator_optimizer, dmd.fake_optimizer) == (w2s.generator_optimizer, w2s.fake_optimizer)


def test_the_fake_branch_keeps_up_except_in_the_papers_variant() -> None:
    """It learns alone first. On whole weights it learns at 10 to 40 times the rate; two LoRAs have the same rate."""
    seen = set()
    for path in PRESETS:
        config = load_config(path)
        if config.fake_optimizer is None:
            continue
        faster = config.fake_optimizer.lr / config.generator_optimizer.lr
        if path.stem.endswith("_paper"):
            assert (faster, config.method.warmup_rounds) == (1, 0)
            assert config.method.fake_loss_scale == 1e4
        elif path.stem != "pocket_demo":
            assert config.method.warmup_rounds >= 5, path.name
            assert 10 <= faster <= 40 if config.model.mode == "full" else faster == 1, path.name
        seen.add(path.stem.partition("_")[0])
    assert seen == {"hunyuan", "magic141", "wan", "pocket"}


def test_the_papers_variant_differs_only_in_the_fake_branch_and_the_batch() -> None:
    ours, papers = (
        load_config(PRESET_FOLDER / f"hunyuan_i2v_w2s_4step{name}.yaml").model_dump() for name in ("", "_paper")
    )
    differing = {name for name in ours if ours[name] != papers[name]}
    assert differing == {"run", "method", "fake_optimizer", "context_parallel"}
    assert {name for name in ours["method"] if ours["method"][name] != papers["method"][name]} == {
        "fake_warmup",
        "fake_loss_scale",
    }


def test_updates_of_the_pocket_model_see_enough_clips() -> None:
    """At least 32 clips of 180 tokens, in one micro-batch; the demo is shorter."""
    paths = [path for path in PRESETS if path.stem.startswith("pocket") and path.stem not in DIFFERENT]
    assert len(paths) >= 7
    for path in paths:
        data = load_config(path).data
        assert (data.micro_batch, data.accumulation) == (32, 1), path.name


def test_presets_from_text_and_image_train_with_captions() -> None:
    captioned = {path.stem for path in PRESETS if load_config(path).data.captions}
    assert captioned == {path.stem for path in PRESETS if "_ti2v_" in path.stem} | {"hunyuan_i2v_cfg"}


def test_wan_is_guided_because_it_is_not_guidance_distilled() -> None:
    wan = [load_config(path) for path in PRESETS if path.stem.startswith("wan")]
    assert len(wan) == 2
    for config in wan:
        assert isinstance(config.method, MatchingConfig)
        assert 3 <= config.method.guidance_scale <= 6
        assert config.model.negative_prompt is not None


def test_the_two_captioned_trainings_of_the_pocket_model_fit_together() -> None:
    """The first fine-tunes the shipped teacher. The second distils the first's export, with the same data."""
    sft, w2s = (load_config(PRESET_FOLDER / f"pocket_ti2v_{name}.yaml") for name in ("sft", "w2s_4step"))
    assert (sft.method.name, sft.model.teacher, sft.model.mode) == ("sft", "pocket", "lora")
    assert (w2s.method.name, w2s.schedule.steps, w2s.model.mode) == ("w2s", 4, "lora")
    assert sft.data == w2s.data
    assert sft.data.caption_dropout == 0.1
    assert f"export {sft.run} --out {w2s.model.teacher}" in header(PRESET_FOLDER / "pocket_ti2v_w2s_4step.yaml")
