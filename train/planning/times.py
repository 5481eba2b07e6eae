"""Seconds of a training on a kind of GPU, from counted work."""

from dataclasses import dataclass

from ..config.training import TrainConfig
from ..memory.simulated import Simulation
from ..memory.work import WorkCount
from .gpus import REACHED, Gpu, Reached
from .machines import Machines

# An optimizer step reads the gradient twice, and reads and writes the fp32 weight and the two moments; then it writes
# the bf16 weight.
_BYTES_OF_A_STEP = 34
_BF16_BYTES = 2


@dataclass(frozen=True)
class Times:
    """Seconds of the parts of a training.

    Attributes:
        updates: one update of each role, with all its micro-batches and without communication.
        communication: what one update of each role sends, as if the GPU waited for it.
        sampling_step: one step of the generator's sampler for one sample.
    """

    updates: dict[str, float]
    communication: dict[str, float]
    sampling_step: float

    def of(self, order: tuple[str, ...]) -> float:
        """Return the seconds of updates in an order, such as a round's."""
        return sum(self.updates[role] + self.communication[role] for role in order)

    def sending(self, order: tuple[str, ...]) -> float:
        """Return the seconds of communication in an order of updates."""
        return sum(self.communication[role] for role in order)


def seconds(work: WorkCount, gpu: Gpu, reached: Reached = REACHED, *, compiled: bool = False) -> float:
    """Return the seconds in which one GPU does an amount of work.

    Args:
        work: the work.
        gpu: the GPU.
        reached: the shares of its speeds that are reached.
        compiled: whether the blocks of the networks are compiled.
    """
    flops = 1e12 * gpu.tflops
    attention = work.attention / reached.attention + work.attention_backward / reached.attention_backward
    rest = work.products / (reached.products * flops) + work.moved / (reached.moved * 1e9 * gpu.bandwidth)
    if compiled:
        # Few operations are left, so Python is no limit.
        return attention / flops + reached.compiled * rest
    return max(attention / flops + rest, reached.seconds_per_operation * work.operations)


def times_of(simulation: Simulation, config: TrainConfig, machines: Machines) -> Times:
    """Compute the times of a training.

    A rollout stops at a level that is drawn uniformly, so on average it takes `(steps - 1) / 2` sampler steps more than
    the shortest one.

    Args:
        simulation: the networks and one update of each role.
        config: the simulated configuration, or one with other settings of ZeRO or accumulation.
        machines: the GPUs.
    """
    stage, gpu, compiled = config.zero.stage, machines.gpu, config.model.compile
    more_steps = (config.schedule.steps - 1) / 2
    others = (machines.count - 1) / machines.count
    updates, communication = {}, {}
    trained = _trained(simulation)
    for role, update in simulation.updates.items():
        work = (update.work + simulation.sampling_step * (more_steps * update.rollouts)) * config.data.accumulation
        share = trained[role] / (machines.count if stage >= 1 else 1)
        updates[role] = seconds(work, gpu, compiled=compiled) + share * _BYTES_OF_A_STEP / (1e9 * gpu.bandwidth)
        # The sums of gradients to their owner, and new weights back. At stage 3 weights come with each use instead.
        sent = trained[role] * _BF16_BYTES * (1 if stage == 3 else 2) + (work.weights if stage == 3 else 0)
        communication[role] = others * sent / (1e9 * machines.link) + _exchange(work, config, machines)
    step = seconds(simulation.sampling_step, gpu, compiled=compiled)
    if stage == 3:
        step += others * simulation.sampling_step.weights / (1e9 * machines.link)
    step += _exchange(simulation.sampling_step, config, machines)
    return Times(updates, communication, step / config.data.micro_batch)


def _exchange(work: WorkCount, config: TrainConfig, machines: Machines) -> float:
    """Return the seconds in which processes that share a sample exchange their parts before and after attention."""
    degree = config.context_parallel
    return (degree - 1) / degree * work.exchanged / (1e9 * machines.link_within(degree))


def _trained(simulation: Simulation) -> dict[str, int]:
    """Return the number of trained weights of each role."""
    return {
        role: sum(parameter.numel() for parameter in engine.parameters)
        for role, engine in zip(simulation.networks.engines, simulation.engines(), strict=True)
    }
