"""The memory of a training, computed before it starts: for every method and every ZeRO stage."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import train.run.trainer
from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.recipe import Recipe
from tests.makers import file_state, hunyuan_shape, random_prompt
from train.config.methods import DISCRIMINATOR, FAKE, GENERATOR
from train.config.reading import parse_config
from train.data.dataset_index import sample_shapes
from train.engines.teacher import load_teacher
from train.memory.training import Memory, memory_of

FRAMES, SIDE = 17, 64


class LoadingError(Exception):
    """Raised where networks would be loaded."""


def load(*given: object) -> None:
    """Replaces `build_networks`."""
    raise LoadingError


DISCRIMINATOR_SETTINGS = {"optimizer": {"lr": 1e-3}}
# By name: the method's settings, and the roles that it updates.
METHODS = {
    "w2s": ({"name": "w2s"}, {FAKE, GENERATOR}),
    "guided": ({"name": "w2s", "guidance_scale": 3.0}, {FAKE, GENERATOR}),
    "supervised": ({"name": "w2s", "supervision": {"weight": 0.25}}, {FAKE, GENERATOR}),
    "dmd": ({"name": "dmd"}, {FAKE, GENERATOR}),
    "dmd2": ({"name": "dmd2", "discriminator": DISCRIMINATOR_SETTINGS}, {FAKE, DISCRIMINATOR, GENERATOR}),
    "one_step": ({"name": "one_step"}, {FAKE, GENERATOR}),
    "lcm": ({"name": "lcm"}, {GENERATOR}),
    "cfg": ({"name": "cfg"}, {GENERATOR}),
    "sft": ({"name": "sft"}, {GENERATOR}),
}
# Those that cannot be trained as a LoRA.
WHOLE = ("one_step", "cfg")


@pytest.fixture(scope="module")
def few_step_file(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path) -> Path:
    """The tiny teacher as a generator of four steps."""
    path, teacher = tmp_path_factory.mktemp("generator") / "generator.safetensors", load_checkpoint(teacher_file)
    recipe = Recipe(kind="generator", steps=4, shift=5.0, width=SIDE, height=SIDE, frames=FRAMES, fps=24)
    save_checkpoint(path, teacher.state, recipe, teacher.null_prompt)
    return path


@pytest.fixture
def memory(
    tmp_path: Path, tiny_config: Callable[..., dict], negative_prompt: Path, few_step_file: Path
) -> Callable[..., Memory]:
    def found(
        method: str,
        gpus: int = 1,
        stage: int = 2,
        micro_batch: int = 1,
        accumulation: int = 2,
        frames: int = FRAMES,
        **model: object,
    ):
        raw = tiny_config(tmp_path / "run", method=METHODS[method][0], zero={"stage": stage})
        raw["model"] |= {"precision": "bf16", **model}
        raw["data"] |= {"micro_batch": micro_batch, "accumulation": accumulation}
        if method in ("guided", "cfg"):
            raw["model"] |= {"negative_prompt": str(negative_prompt)}
        if method == "one_step":
            raw["method"] = raw["method"] | {"few_step_generator": str(few_step_file)}
            raw["schedule"] = {"steps": 1}
        if FAKE not in METHODS[method][1]:
            del raw["fake_optimizer"]
        if method == "sft":
            raw["generator_ema"] = {"decay": 0.9}
        config = parse_config(raw, "config")
        return memory_of(config, load_teacher(config, "meta"), sample_shapes("hunyuan_video", frames, SIDE, SIDE), gpus)

    return found


@pytest.mark.parametrize(
    ("method", "mode"),
    [(method, mode) for method in METHODS for mode in ("full", "lora") if mode == "full" or method not in WHOLE],
)
def test_every_method_makes_its_updates_without_data(
    method: str, mode: str, memory: Callable[..., Memory], teacher_file: Path
) -> None:
    found = memory(method, mode=mode)
    assert found.updates.keys() == METHODS[method][1]
    state = load_checkpoint(teacher_file).state
    network = 2 * sum(tensor.numel() for tensor in state.values())
    networks = {"one_step": 3, "sft": 1}.get(method, 2) if mode == "full" else 1
    # Branches, a discriminator and cfg's guidance embedding are small compared with full networks.
    assert networks * network <= found.weights <= (networks + 0.3) * network
    assert found.weights == found.start
    trained = network // 2 if mode == "full" else 0
    copies = 16 if method == "sft" else 12
    assert found.optimizer >= copies * trained
    # At least the noise and the velocity of a sample, but less than the activations of all blocks together.
    latent = 4 * 16 * 5 * 8 * 8
    assert all(4 * latent < size < network for size in found.updates.values())
    most = max(*found.updates.values(), found.step)
    # One bucket of bf16 gradients: as many elements as the largest of the trained networks has.
    assert found.optimizer / copies * 2 / len(found.updates) <= found.buffers <= found.optimizer / copies * 2
    assert found.total == found.weights + found.optimizer + found.gradients + found.buffers + most


@pytest.mark.slow
def test_partitions_of_deepspeed_are_divided_by_the_processes(memory: Callable[..., Memory]) -> None:
    alone = memory("w2s", 1, 0)
    generator = alone.gradients / 2
    branch = alone.optimizer / 12 - generator
    assert 0 < branch < generator
    # By stage. Two micro-batches: their gradients are added in fp32, except at stage 0.
    gradients = {1: 4 * (generator + branch) + 2 * generator, 2: 4 * generator / 4, 3: 4 * (generator + branch) / 4}
    steps = {1: 0, 2: 0, 3: 4 * generator / 4}
    # At stage 3 buffers of two engines, a copy of the reduced gradients, and at most all weights gathered.
    buffers = {1: 4 * generator, 2: 2 * generator, 3: 4 * (2 * generator + branch) + alone.weights}
    for stage in (1, 2, 3):
        four = memory("w2s", 4, stage)
        assert four.optimizer == pytest.approx(alone.optimizer / 4, abs=8)
        assert four.gradients == pytest.approx(gradients[stage], abs=16)
        assert four.step == pytest.approx(steps[stage], abs=8)
        assert four.buffers == pytest.approx(buffers[stage], abs=16)
        assert four.weights == pytest.approx(alone.weights / (4 if stage == 3 else 1), abs=8)
        assert (four.start, four.updates) == (alone.start, alone.updates)
    assert alone.buffers == 0
    # Without accumulation the generator keeps bf16; its step makes fp32 copies. The branch is added in fp32.
    single = memory("w2s", 4, 2, accumulation=1)
    assert single.gradients == pytest.approx(max(2 * generator / 4, 4 * branch / 4), abs=16)
    assert single.step == pytest.approx(6 * generator / 4, abs=8)
    # A discriminator's weights are not partitioned.
    with_discriminator, without = (memory(method, 4, 3).weights for method in ("dmd2", "dmd"))
    assert with_discriminator - without > memory("dmd2", 4, 2).weights - memory("dmd", 4, 2).weights - 8


def test_the_few_step_generator_is_partitioned_before_the_others_are_loaded(memory: Callable[..., Memory]) -> None:
    network = memory("sft", 1).weights
    assert memory("one_step", 4, 2).start == pytest.approx(3 * network, rel=0.1)
    assert memory("one_step", 4, 3).start == pytest.approx(2.25 * network, rel=0.1)


@pytest.mark.slow
def test_memory_of_an_update_follows_its_settings(memory: Callable[..., Memory]) -> None:
    def most(method: str = "w2s", **settings: object) -> int:
        return memory(method, **settings).updates[GENERATOR]

    recomputed = most(activation_checkpointing=True)
    assert recomputed < most(activation_checkpointing=True, keep_attention=True) < most()
    assert most(micro_batch=2, activation_checkpointing=True) > 1.6 * recomputed
    assert most(frames=33, activation_checkpointing=True) > 1.5 * recomputed
    # Further terms that call the trained network are computed one after another.
    assert most("supervised", activation_checkpointing=True) < 1.1 * recomputed
    assert most("cfg", activation_checkpointing=True) < 1.1 * recomputed
    assert memory("w2s", precision="fp32").weights == 2 * memory("w2s").weights
    # From stage 1 on DeepSpeed keeps a copy of fp32 weights too.
    assert memory("w2s", precision="fp32").optimizer == memory("w2s").optimizer
    assert memory("w2s", 1, 0, precision="fp32").optimizer == pytest.approx(memory("w2s", 1, 0).optimizer * 2 / 3)


def test_processes_that_share_a_sample_share_its_activations(
    tmp_path: Path, tiny_config: Callable[..., dict], teacher_file: Path
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    recipe = Recipe(kind="teacher", steps=28, shift=5.0, width=SIDE, height=SIDE, frames=FRAMES, fps=24)
    save_checkpoint(teacher, file_state(hunyuan_shape(hidden=512)), recipe, random_prompt())

    def found(context: int, file: Path = teacher) -> Memory:
        raw = tiny_config(tmp_path / "run", method=METHODS["dmd2"][0], context_parallel=context)
        raw["model"] |= {"teacher": str(file), "mode": "lora", "activation_checkpointing": True}
        config = parse_config(raw, "config")
        shapes = sample_shapes("hunyuan_video", 65, 192, 192)
        return memory_of(config, load_teacher(config, "meta"), shapes, 4)

    alone, two, four = (found(context) for context in (1, 2, 4))
    for role in (FAKE, GENERATOR, DISCRIMINATOR):
        # The latents, the patch embedding and the velocities are on every process.
        assert 1 / 2 < two.updates[role] / alone.updates[role] < 0.7, role
        assert 1 / 4 < four.updates[role] / alone.updates[role] < 0.6, role
    assert (four.weights, four.optimizer, four.gradients) == (alone.weights, alone.optimizer, alone.gradients)
    with pytest.raises(ConfigError, match=r"context_parallel is 2, .*1 attention heads"):
        found(2, teacher_file)


def test_captions_take_the_memory_of_their_longest_prompt(
    tmp_path: Path, tiny_config: Callable[..., dict], negative_prompt: Path
) -> None:
    """The generator's activations grow with the tokens of text; without captions they have those of the null prompt."""

    def update(tokens: int | None, **data: object) -> int:
        raw = tiny_config(tmp_path / "run", method={"name": "w2s", "guidance_scale": 3.0})
        raw["data"] |= data
        if not data:
            raw["model"] |= {"negative_prompt": str(negative_prompt)}
        config = parse_config(raw, "config")
        shapes = sample_shapes("hunyuan_video", FRAMES, SIDE, SIDE)
        return memory_of(config, load_teacher(config, "meta"), shapes, 1, tokens).updates[GENERATOR]

    short = update(3, captions=True)
    assert update(None) == update(400) == pytest.approx(short, rel=0.01)
    longer = [update(tokens, captions=True) for tokens in (103, 203, 303)]
    assert longer[-1] > 2 * short
    # Each token takes the same: no matrix of tokens by tokens is held.
    assert longer[2] - longer[1] == pytest.approx(longer[1] - longer[0], rel=0.01)
    assert update(None, captions=True) > update(500, captions=True)
    assert update(303, captions=True, micro_batch=2) > 1.9 * longer[-1]


@pytest.mark.parametrize(("room", "says"), [(10**12, "1000.0 GB"), (10**6, "zero.stage=3")])
def test_a_run_on_a_gpu_logs_its_memory_before_networks_are_loaded(
    room: int,
    says: str,
    tmp_path: Path,
    tiny_config: Callable[..., dict],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(train.run.trainer, "gpu_bytes", lambda device: room)
    monkeypatch.setattr(train.run.trainer, "build_networks", load)
    config = parse_config(tiny_config(tmp_path / "run"), "config")
    found = memory_of(config, load_teacher(config, "meta"), sample_shapes("hunyuan_video", 5, 32, 32), 1)
    with caplog.at_level(logging.INFO, "train"), pytest.raises(LoadingError):
        train.run.trainer.train(config)
    (record,) = [record for record in caplog.records if "of each GPU" in record.message]
    assert says in record.message
    assert f"{found.total / 1e9:.1f} GB (at the start" in record.message
    assert (record.levelno == logging.WARNING) == (room == 10**6)


def test_a_failed_memory_estimate_does_not_end_a_run(
    tmp_path: Path,
    tiny_config: Callable[..., dict],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*given: object) -> None:
        raise NotImplementedError("no kernel for meta tensors")

    monkeypatch.setattr(train.run.trainer, "gpu_bytes", lambda device: 10**12)
    monkeypatch.setattr(train.run.trainer, "memory_of", fail)
    monkeypatch.setattr(train.run.trainer, "build_networks", load)
    with pytest.raises(LoadingError):
        train.run.trainer.train(parse_config(tiny_config(tmp_path / "run"), "config"))
    assert "no kernel for meta tensors" in caplog.text


def test_the_command_uses_the_dataset_or_given_sizes(
    tmp_path: Path, tiny_config: Callable[..., dict], magicdistill: Callable[..., tuple[int, str, str]]
) -> None:
    path, raw = tmp_path / "config.yaml", tiny_config(tmp_path / "run")
    path.write_text(yaml.safe_dump(raw))
    status, out, err = magicdistill("memory", path, "--gpus", 4)
    assert status == 0, err
    for part in (
        "weights",
        "optimizer",
        "DeepSpeed's buffers",
        "one update: generator",
        "optimizer step",
        "peak in training",
    ):
        assert f"{part} " in out
    assert not (tmp_path / "run").exists()

    path.write_text(yaml.safe_dump(raw | {"data": {"dataset": str(tmp_path / "none")}}))
    status, _, err = magicdistill("memory", path, "--frames", 9)
    assert status == 2
    assert f"{tmp_path / 'none'} " in err
    assert "dataset.json" in err
    assert "--frames, --height and --width" in err
    status, out, err = magicdistill("memory", path, "--frames", 9, "--height", 64, "--width", 96)
    assert status == 0, err
    status, _, err = magicdistill("memory", path, "--frames", 10, "--height", 64, "--width", 96)
    assert status == 2
    assert "4n + 1" in err
