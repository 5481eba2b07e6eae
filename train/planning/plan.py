"""The plan of a training: memory on each GPU, seconds of an iteration, hours of the run, and disk."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..config.methods import FAKE, GENERATOR
from ..config.training import TrainConfig
from ..engines.teacher import load_teacher
from ..memory.simulated import SimulatedNetworkEngine, Simulation
from ..memory.training import USABLE, Memory, caption_tokens, memory_of_simulation, sample_of
from ..networks.context_parallel import check_degree
from ..run.disk_space import EXTRA_CHECKPOINTS
from .machines import Machines
from .times import Times, times_of

# An optimizer's state in a checkpoint: the fp32 weights and Adam's two moments.
_STATE_BYTES = 12
_AVERAGE_BYTES = 4


@dataclass(frozen=True)
class Plan:
    """What a training takes.

    Attributes:
        machines: the GPUs.
        memory: the memory on each GPU.
        times: the seconds of its parts.
        samples: number of samples in an update.
        iteration: seconds of a round, the updates of all roles up to one of the generator.
        communication: the part of them in which GPUs send, if nothing else runs meanwhile.
        warmup: seconds of the fake warm-up.
        training: seconds of all rounds.
        validation: seconds of the sampling in all validations.
        disk: bytes of the checkpoints that are kept.
    """

    machines: Machines
    memory: Memory
    times: Times
    samples: int
    iteration: float
    communication: float
    warmup: float
    training: float
    validation: float
    disk: int

    @property
    def needed(self) -> float:
        """GB of memory on each GPU, at the start or in training."""
        return max(self.memory.total, self.memory.start) / 1e9

    @property
    def fits(self) -> bool:
        """Whether the training fits into the memory of the GPUs."""
        return self.needed <= USABLE * self.machines.gpu.memory

    @property
    def hours(self) -> float:
        """Hours of the run."""
        return (self.warmup + self.training + self.validation) / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours of the run, times the number of GPUs."""
        return self.hours * self.machines.count

    def facts(self) -> dict[str, str]:
        """Return the plan as text by label."""
        gpu, count = self.machines.gpu, self.machines.count
        fits = "fits" if self.fits else "does not fit"
        facts = {
            "GPUs": f"{count} x {gpu.name}: {gpu.memory:g} GB, {gpu.tflops:g} TFLOP/s, {gpu.bandwidth:g} GB/s",
            "memory": f"{self.needed:.1f} GB on each: {fits} ({USABLE:.0%} of {gpu.memory:g} GB can be used)",
            "an update": f"{self.samples} samples",
            "an iteration": f"{_duration(self.iteration)}, of it {_duration(self.communication)} of communication",
        }
        for role, seconds in self.times.updates.items():
            facts[f"one update: {role}"] = _duration(seconds + self.times.communication[role])
        if self.warmup:
            facts["fake warm-up"] = _duration(self.warmup)
        return facts | {
            "training": _duration(self.training),
            "validation": _duration(self.validation),
            "the run": f"{_duration(3600 * self.hours)}, {self.gpu_hours:,.1f} GPU-hours",
            "disk": f"{self.disk / 1e9:,.1f} GB of checkpoints",
            "not included": "loading, writing checkpoints, decoding of the shown samples, measuring the signal",
        }


def plan_of(simulation: Simulation, config: TrainConfig, machines: Machines) -> Plan:
    """Compute the plan of a training.

    Args:
        simulation: the networks and one update of each role.
        config: the simulated configuration, or one with other settings of ZeRO, accumulation or the moving average.
        machines: the GPUs.
    """
    memory = memory_of_simulation(simulation, config, machines.count)
    times = times_of(simulation, config, machines)
    validations = 0
    if every := config.validation.every:
        # The start and the last update are validated too.
        validations = 1 + -(-config.updates // every)
    # The processes, or groups that share a sample, share the samples.
    groups = machines.count // config.context_parallel
    samples = -(-config.validation.samples * config.validation.seeds // groups)
    return Plan(
        machines,
        memory,
        times,
        groups * config.data.micro_batch * config.data.accumulation,
        times.of(simulation.order),
        times.sending(simulation.order),
        config.method.warmup_rounds * times.of(simulation.warmup_order),
        config.updates * times.of(simulation.order),
        validations * samples * config.schedule.steps * times.sampling_step,
        (config.checkpoint.keep + EXTRA_CHECKPOINTS) * checkpoint_bytes(simulation, config),
    )


def checkpoint_bytes(simulation: Simulation, config: TrainConfig) -> int:
    """Return the bytes of one checkpoint: the optimizers' states, and the model files in it.

    Args:
        simulation: the networks of the training.
        config: the simulated configuration, or one with another moving average.
    """
    total = 0
    for role, engine in zip(simulation.networks.engines, simulation.engines(), strict=True):
        trained = sum(parameter.numel() for parameter in engine.parameters)
        total += trained * _STATE_BYTES
        if role == GENERATOR and config.generator_ema is not None:
            total += trained * _AVERAGE_BYTES
        if role == GENERATOR and config.model.mode == "full":
            assert isinstance(engine, SimulatedNetworkEngine)
            total += sum(parameter.nbytes for parameter in engine.network.transformer.parameters())
        elif role in (GENERATOR, FAKE):
            total += sum(parameter.nbytes for parameter in engine.parameters)
    return total


@dataclass(frozen=True)
class Clips:
    """The size of the clips; None takes the dataset's.

    Attributes:
        frames: number of frames, 4n + 1.
        height: height in pixels.
        width: width in pixels.
    """

    frames: int | None = None
    height: int | None = None
    width: int | None = None


def simulate(config: TrainConfig, clips: Clips, gpus: int) -> Simulation:
    """Build the networks of a training without data, and make one update of each role.

    Args:
        config: the training's configuration.
        clips: the size of its clips.
        gpus: number of GPUs.

    Raises:
        MagicDistillError: if the teacher or the dataset cannot be used, the size is invalid, or the GPUs or the
            teacher's heads cannot be divided by `context_parallel`.
    """
    teacher = load_teacher(config, "meta")
    check_degree(config.context_parallel, gpus, teacher.checkpoint.shape.heads, teacher.checkpoint.source)
    shapes: Mapping[str, tuple[int, ...]] = sample_of(config, teacher, clips.frames, clips.height, clips.width)
    return Simulation(config, teacher, shapes, caption_tokens(config))


def _duration(seconds: float) -> str:
    """Return a time as text in a fitting unit."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"
