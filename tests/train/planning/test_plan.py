"""The plan of a training: times against plain arithmetic, disk against a real checkpoint, changes against plans."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.__main__ import RESULTS, TIMES_PAGE
from benchmarks.cases.iteration import PRESET
from benchmarks.memory import CASES
from benchmarks.runs import together
from benchmarks.sizes import FULL_SIZES, attention_flops, forward_flops
from benchmarks.store import Store
from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.recipe import Recipe
from tests.makers import file_state, hunyuan_shape, random_prompt
from train.config.methods import DISCRIMINATOR, FAKE, GENERATOR
from train.config.reading import load_config
from train.config.training import TrainConfig
from train.memory.bytes_held import fused_attention
from train.memory.simulated import Simulation
from train.memory.work import Work
from train.planning.changes import Change, changes
from train.planning.gpus import REACHED, Gpu
from train.planning.machines import Machines
from train.planning.plan import Clips, Plan, checkpoint_bytes, plan_of, simulate
from train.planning.times import seconds, times_of
from train.run.checkpoint_folders import manifests
from train.run.trainer import train

# Slow enough that Python is no limit.
GPU = Gpu("slow", memory=1.0, tflops=1e-3, bandwidth=1.0, link=0.01)
CLIPS = Clips(17, 64, 64)


@pytest.fixture
def configure(tmp_path: Path, tiny_config: Callable[..., dict]) -> Callable[..., TrainConfig]:
    def build(*settings: str, **sections: object) -> TrainConfig:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tiny_config(tmp_path / "run", **sections)))
        return load_config(path, ["model.precision=bf16", *settings])

    return build


@pytest.fixture
def simulation(configure: Callable[..., TrainConfig]) -> Simulation:
    return simulate(configure(), CLIPS, 1)


def test_a_forward_is_the_work_of_the_networks_formula(simulation: Simulation, teacher_file: Path) -> None:
    checkpoint = load_checkpoint(teacher_file)
    assert checkpoint.null_prompt is not None
    found, tokens = simulation.sampling_step, 5 * 4 * 4
    formula = forward_flops(checkpoint.shape, tokens, checkpoint.null_prompt.text_states.shape[1])
    assert found.products + found.attention == pytest.approx(formula, rel=0.02)


def test_seconds_are_work_divided_by_reached_speeds(simulation: Simulation) -> None:
    work = simulation.updates[FAKE].work
    assert min(work.products, work.attention, work.attention_backward, work.moved) > 0
    by_hand = (
        work.products / (1e9 * REACHED.products)
        + work.attention / (1e9 * REACHED.attention)
        + work.attention_backward / (1e9 * REACHED.attention_backward)
        + work.moved / (1e9 * REACHED.moved)
    )
    assert seconds(work, GPU) == pytest.approx(by_hand)
    fast = replace(GPU, tflops=1e9, bandwidth=1e9)
    assert seconds(work, fast) == REACHED.seconds_per_operation * work.operations


def test_an_update_has_the_average_of_all_exits(simulation: Simulation, configure: Callable[..., TrainConfig]) -> None:
    """Each exit level is simulated here; the planner computes the average from the shortest rollout."""

    class Exits:
        def __init__(self, index: int) -> None:
            self.index = index

        def exit_index(self, update: int, levels: int) -> int:
            return self.index

    steps = simulation.config.schedule.steps
    counts = []
    for index in range(steps):
        draws = simulation._method.draws
        exit_index, draws.exit_index = draws.exit_index, Exits(index).exit_index  # type: ignore[method-assign]
        with Work() as work, fused_attention():
            simulation._method.loss(GENERATOR, simulation._micro_batch()).value.backward()
        draws.exit_index = exit_index  # type: ignore[method-assign]
        counts.append(seconds(work.count, GPU))
    config = configure("data.accumulation=1")
    times = times_of(simulation, config, Machines(GPU, 1, 50))
    optimizer = times.updates[GENERATOR] - sum(counts) / steps
    trained = sum(parameter.numel() for parameter in simulation.networks.generator.parameters)
    assert optimizer == pytest.approx(34 * trained / 1e9, rel=0.02)
    twice = times_of(simulation, configure("data.accumulation=2"), Machines(GPU, 1, 50))
    assert twice.updates[GENERATOR] - times.updates[GENERATOR] == pytest.approx(sum(counts) / steps, rel=1e-4)


def test_communication_by_stage(simulation: Simulation, configure: Callable[..., TrainConfig]) -> None:
    trained = sum(parameter.numel() for parameter in simulation.networks.generator.parameters)
    link = 1e9 * GPU.link

    def sent(stage: int, count: int) -> float:
        config = configure(f"zero.stage={stage}", "data.accumulation=1")
        return times_of(simulation, config, Machines(GPU, count, 50)).communication[GENERATOR] * link

    assert sent(2, 1) == sent(3, 1) == 0
    # In a ring each process sends all but its own part.
    assert sent(2, 4) == pytest.approx(3 / 4 * trained * 2 * 2)
    network = sum(parameter.nbytes for parameter in simulation.networks.generator.network.parameters())
    gathered = sent(3, 4) - 3 / 4 * trained * 2
    # At least the forward of the generator, its backward, and two scores; no call gathers a network twice.
    assert 3 / 4 * 3 * network < gathered < 3 / 4 * 9 * network


def test_processes_that_share_a_sample_halve_its_work_and_exchange_attention(
    configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Two heads on two processes: each computes one head for all tokens, and the rest for half of them."""
    state = file_state(hunyuan_shape(hidden=256, refiner_blocks=2))
    recipe = Recipe(kind="teacher", steps=28, shift=5.0, width=64, height=64, frames=17, fps=24)
    save_checkpoint(tmp_path / "wide.safetensors", state, recipe, random_prompt())
    teacher = f"model.teacher={tmp_path / 'wide.safetensors'}"
    alone, shared = configure(teacher), configure(teacher, "context_parallel=2")
    plans = [plan_of(simulate(each, CLIPS, 4), each, Machines(GPU, 4, 50)) for each in (alone, shared)]
    counts = [simulate(each, CLIPS, 4).sampling_step for each in (alone, shared)]
    assert counts[1].attention == pytest.approx(counts[0].attention / 2, rel=0.1)
    assert 0.45 < counts[1].products / counts[0].products < 0.65
    assert [plan.samples for plan in plans] == [8, 4]
    more = plans[1].times.communication[FAKE] - plans[0].times.communication[FAKE]
    assert more > counts[1].exchanged / 2 / (1e9 * GPU.link)
    assert plans[1].times.updates[FAKE] < 0.65 * plans[0].times.updates[FAKE]
    with pytest.raises(ConfigError, match="context_parallel is 2, but the run has 3 processes"):
        simulate(shared, CLIPS, 3)


def test_the_run_is_the_sum_of_its_rounds(simulation: Simulation, configure: Callable[..., TrainConfig]) -> None:
    settings = ["updates=10", "validation.every=4", "validation.samples=5", "method.fake_warmup=3"]
    config = configure(*settings)
    plan = plan_of(simulation, config, Machines(GPU, 4, 50))
    times = plan.times
    fake, generator = (times.updates[role] + times.communication[role] for role in (FAKE, GENERATOR))
    assert plan.iteration == pytest.approx(2 * fake + generator)
    assert plan.warmup == pytest.approx(3 * 2 * fake)
    # At updates 0, 4, 8 and 10; ten samples on four processes.
    assert plan.validation == pytest.approx(4 * 3 * config.schedule.steps * times.sampling_step)
    assert 3600 * plan.hours == pytest.approx(10 * plan.iteration + plan.warmup + plan.validation)
    assert (plan.gpu_hours, plan.samples) == (4 * plan.hours, 8)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_disk_is_that_of_a_real_checkpoint(mode: str, configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = configure("model.precision=fp32", f"model.mode={mode}", "updates=1", "generator_ema={decay: 0.9}")
    train(config)
    (manifest,) = manifests(config.run).values()
    found, written = checkpoint_bytes(simulate(config, CLIPS, 1), config), sum(f.bytes for f in manifest.files.values())
    # The names of tensors in the files' headers, and the null prompt.
    assert 0 <= written - found < 250_000


def test_suggested_changes_are_plans_that_help(configure: Callable[..., TrainConfig]) -> None:
    config = configure()
    simulation = simulate(config, CLIPS, 1)
    now = plan_of(simulation, config, Machines(GPU, 4, 50))

    def found(memory: float) -> dict[str, Change]:
        machines = Machines(replace(GPU, memory=memory), 4, 50)
        helpful = changes(
            lambda further: configure(*further), lambda changed: simulate(changed, CLIPS, 4), simulation, machines
        )
        return {change.settings: change for change in helpful}

    def alone(settings: str) -> Plan:
        changed = configure(*settings.split())
        return plan_of(simulate(changed, CLIPS, 1), changed, Machines(GPU, 4, 50))

    small = found(0.8 * now.needed)
    assert {"model.mode=lora", "model.activation_checkpointing=true"} <= small.keys()
    for settings, change in small.items():
        if not settings.startswith("--"):
            assert change.plan.needed == alone(settings).needed < now.needed
            assert change.plan.iteration == alone(settings).iteration
    order = [change.plan.fits for change in small.values()]
    assert order == sorted(order, reverse=True)

    large = found(100 * now.needed)
    assert all(change.plan.fits and change.plan.iteration < now.iteration for change in large.values())
    assert "model.activation_checkpointing=true" not in large


def test_settings_that_the_method_refuses_are_not_suggested(
    configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    sections = {"method": {"name": "dmd2", "discriminator": {"optimizer": {"lr": 1e-3}}, "fake_updates": 1}}
    config = configure(**sections)
    simulation = simulate(config, CLIPS, 1)
    assert simulation.updates.keys() == {FAKE, DISCRIMINATOR, GENERATOR}
    config = configure("method.supervision.weight=0.25")

    def refuse(further: list[str]) -> TrainConfig:
        return configure(*further, "model.mode=nothing") if "model.mode=lora" in further else configure(*further)

    small = Machines(replace(GPU, memory=1e-6), 1, 50)
    found = changes(refuse, lambda changed: simulate(changed, CLIPS, 1), simulate(config, CLIPS, 1), small)
    assert found
    assert all("lora" not in change.settings for change in found)


def test_the_command_prints_the_plan_and_the_changes(
    configure: Callable[..., TrainConfig], tmp_path: Path, magicdistill: Callable[..., tuple[int, str, str]]
) -> None:
    configure()
    clips = ("--frames", 17, "--height", 64, "--width", 64)
    status, out, err = magicdistill("plan", tmp_path / "config.yaml", "--gpus", 2, "--gpu", "H200", *clips)
    assert status == 0, err
    for part in ("2 x h200", "an iteration", "one update: fake", "GPU-hours", "of checkpoints", "fits"):
        assert part in out
    assert not (tmp_path / "run").exists()
    status, _, err = magicdistill("plan", tmp_path / "config.yaml", "--gpu", "h900", *clips)
    assert status == 2
    assert "h900" in err


def test_compiled_blocks_save_what_they_saved_on_a_gpu(
    simulation: Simulation, configure: Callable[..., TrainConfig]
) -> None:
    """Attention takes the same time; the rest of a forward takes a share that one measurement gave."""
    clip, shape = FULL_SIZES.medium, FULL_SIZES.shape
    cases = [f"compiled blocks, {clip.name}: {kind}" for kind in ("eager", "compiled")]
    rows = together([Store(path).read() for path in RESULTS.glob("*.json")], "forward", *cases)
    eager, compiled = (row["seconds"] for row in rows)
    blocks = shape.double_blocks + shape.single_blocks
    flops = blocks * attention_flops(shape.hidden, clip.tokens + FULL_SIZES.text_tokens)
    attention = flops / (REACHED.attention * 989e12)
    assert REACHED.compiled == pytest.approx((compiled - attention) / (eager - attention), abs=0.01)
    machines = Machines(GPU, 1, 50)
    plain, faster = (times_of(simulation, configure(*each), machines) for each in ([], ["model.compile=true"]))
    assert all(faster.updates[role] < plain.updates[role] for role in plain.updates)


def test_the_page_agrees_with_what_was_measured() -> None:
    """Computed from the newest results by `python -m benchmarks times`."""
    page = TIMES_PAGE.read_text(encoding="utf-8")
    _, _, checked = page.partition("## Computed and measured")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in checked.splitlines() if line.startswith("| ")]
    ratios = {row[0]: float(row[3]) for row in rows if len(row) == 4 and row[0] != "what" and "---" not in row[0]}
    assert {f"129 frames at 544x960: {role} update, exit at the first node" for role in (FAKE, GENERATOR)} <= set(
        ratios
    )
    # One row at 33 frames was measured once, with a slow first rollout.
    slow = ratios.pop("33 frames at 544x960: fake update, exit at the first node")
    assert 0.88 <= slow <= 1.1
    assert all(0.9 <= ratio <= 1.1 for ratio in ratios.values()), ratios
    shares = [float(row[1]) for row in rows if len(row) == 3 and row[1][:1].isdigit()]
    fitted = [float(row[2]) for row in rows if len(row) == 3 and row[1][:1].isdigit()]
    assert shares == pytest.approx(fitted, rel=0.01)
    presets = {path.stem for path in PRESET.parent.glob("*.yaml") if not path.stem.startswith("pocket")}
    assert presets == {case.preset for case in CASES}
    assert all(f"| {case.preset} | {case.gpus} | {clip.name} |" in page for case in CASES for clip in case.clips)
