"""The memory that a training needs on each GPU.

The memory of networks and of their calls is measured by running one update per role on tensors without data. A *role*
is a trained network: the generator, the fake branch or the discriminator. The memory of DeepSpeed is computed from its
settings.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import Tensor, nn

from ..config.training import TrainConfig
from ..data.dataset import LatentDataset
from ..data.dataset_index import DatasetError, sample_shapes
from ..engines.engine import deepspeed_config
from ..engines.teacher import Teacher
from ..networks.context_parallel import check_degree
from .simulated import SimulatedNetworkEngine, Simulation, tensors_of

logger = logging.getLogger(__name__)

_FP32_BYTES = 4
# Usable share of a GPU's memory. CUDA, communication and fragmentation of the allocator take the rest.
USABLE = 0.95


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU.

    Attributes:
        weights: the weights of all networks and branches.
        optimizer: the fp32 weights, Adam's two moments, and the generator's average if it is kept on the GPU.
        gradients: this process's share of the gradients that exist at the same time.
        buffers: DeepSpeed's communication buffers for gradients and, at stage 3, for weights.
        updates: the additional peak memory of the network calls in one update, by role.
        step: the peak memory of an optimizer step, mostly fp32 gradients. The network calls hold no memory at that
            time.
        start: the networks before DeepSpeed partitions them.
    """

    weights: int
    optimizer: int
    gradients: int
    buffers: int
    updates: dict[str, int]
    step: int
    start: int

    @property
    def total(self) -> int:
        """The peak memory during training."""
        return self.weights + self.optimizer + self.gradients + self.buffers + max(*self.updates.values(), self.step)

    def facts(self) -> dict[str, str]:
        """Return the parts and totals as text by label, in GB of 10^9 bytes."""
        parts = {
            "weights": self.weights,
            "optimizer": self.optimizer,
            "gradients": self.gradients,
            "DeepSpeed's buffers": self.buffers,
            **{f"one update: {role}": size for role, size in self.updates.items()},
            "optimizer step": self.step,
        }
        return {name: f"{size / 1e9:.2f} GB" for name, size in parts.items()} | {
            "peak in training": f"{self.total / 1e9:.2f} GB on each GPU; only one role is updated at a time",
            "at the start": f"{self.start / 1e9:.2f} GB for the networks, before they are partitioned",
            "not included": "a few GB for CUDA, the validation VAE and fragmentation of the allocator",
        }


def sample_of(
    config: TrainConfig, teacher: Teacher, frames: int | None, height: int | None, width: int | None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one sample's tensors by name, for the configured dataset or for clips of another size.

    Args:
        config: the training's configuration.
        teacher: the teacher, whose family determines the tensors.
        frames: number of frames of the clips, 4n + 1; None takes the dataset's.
        height: height of the clips in pixels; None takes the dataset's.
        width: width of the clips in pixels; None takes the dataset's.

    Raises:
        DatasetError: if a size is taken from the dataset, and the dataset is missing, damaged or for another family.
        MagicDistillError: if the size of the clips is invalid.
    """
    if frames is None or height is None or width is None:
        try:
            datasets = [LatentDataset(folder) for folder in (config.data.dataset, *config.data.mixed)]
        except DatasetError as error:
            raise DatasetError(
                f"{error} To compute the memory without a dataset, set --frames, --height and --width."
            ) from error
        for dataset in datasets:
            dataset.check_family(teacher.checkpoint.family())
        index = _largest(datasets).index
        frames, height, width = frames or index.frames, height or index.height, width or index.width
    return sample_shapes(teacher.checkpoint.architecture.name, frames, height, width)


def largest_shapes(datasets: Sequence[LatentDataset]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of one sample, by name, for the dataset with the largest samples.

    Args:
        datasets: the datasets of a run.
    """
    return _largest(datasets).index.tensor_shapes()


def _largest(datasets: Sequence[LatentDataset]) -> LatentDataset:
    return max(datasets, key=lambda dataset: math.prod(dataset.latent_shape))


def caption_tokens(config: TrainConfig) -> int | None:
    """Return the number of tokens of the longest prompt in the configured dataset; None if that is not known or needed.

    Args:
        config: the training's configuration.
    """
    if not config.data.captions:
        return None
    try:
        texts = LatentDataset(config.data.dataset).texts
    except DatasetError:
        return None
    return None if texts is None else texts.longest


def memory_of(
    config: TrainConfig,
    teacher: Teacher,
    shapes: Mapping[str, tuple[int, ...]],
    gpus: int,
    tokens: int | None = None,
) -> Memory:
    """Compute the memory that a training needs on each GPU.

    The networks are built on `meta`, and each role makes one update there; this measures the weights and the network
    calls. The rest is computed from DeepSpeed's partitioning and its settings.

    Args:
        config: the training's configuration.
        teacher: the teacher, loaded on `meta` or on a device.
        shapes: the shapes of one sample's tensors by name, from `sample_shapes`.
        gpus: the number of GPUs, with one process each.
        tokens: tokens of the longest prompt, for a run with captions; None takes the most that the teacher's text
            encoders make (`Architecture.prompt_tokens`).

    Returns:
        The bytes on each GPU, by use.

    Raises:
        ConfigError: if the method does not suit the teacher, or `context_parallel` the teacher or `gpus`.
    """
    check_degree(config.context_parallel, gpus, teacher.checkpoint.shape.heads, teacher.checkpoint.source)
    return memory_of_simulation(Simulation(config, teacher, shapes, tokens), config, gpus)


def memory_of_simulation(simulation: Simulation, config: TrainConfig, gpus: int) -> Memory:
    """Compute the memory that a training needs on each GPU, from updates that were simulated.

    Args:
        simulation: the networks and their updates.
        config: the simulated configuration, or one with other settings of ZeRO, accumulation or the moving average.
        gpus: the number of GPUs, with one process each.
    """
    networks = simulation.networks
    network_bytes, discriminator = _bytes(simulation.modules), _bytes(simulation.discriminators)
    pair_generator = _bytes([networks.pair_generator.network.network]) if networks.pair_generator is not None else 0
    optimizer, gradients, step = _states(config, simulation, gpus)
    return Memory(
        _share(network_bytes, gpus if config.zero.stage == 3 else 1) + discriminator,
        optimizer,
        gradients,
        _buffers(config, simulation, network_bytes),
        {role: update.peak for role, update in simulation.updates.items()},
        step,
        # DeepSpeed partitions the few-step generator before the other networks are loaded.
        network_bytes + discriminator - pair_generator + _share(pair_generator, gpus if config.zero.stage == 3 else 1),
    )


def log_memory(memory: Memory, capacity: int) -> None:
    """Log the memory that a run will need on each GPU, as a warning if it exceeds the usable memory.

    Args:
        memory: the computed memory.
        capacity: the memory of one GPU in bytes.
    """
    needed = f"{memory.total / 1e9:.1f} GB (at the start {memory.start / 1e9:.1f} GB)"
    if max(memory.total, memory.start) <= USABLE * capacity:
        logger.info("This run will use about %s of the %.1f GB of each GPU", needed, capacity / 1e9)
        return
    logger.warning(
        "This run will use about %s of the %.1f GB of each GPU. That leaves too little memory for CUDA, communication "
        "and validation, so the run will probably run out of memory. Use more GPUs with zero.stage=3, "
        "context_parallel=N (N GPUs for each sample), shorter or smaller clips, model.activation_checkpointing=true, "
        "or model.mode=lora. Compare settings with `magicdistill memory`.",
        needed,
        capacity / 1e9,
    )


def _share(number: int, parts: int) -> int:
    return -(-number // parts)


def _bytes(modules: list[nn.Module]) -> int:
    """Sum the bytes of all weights and buffers; shared ones count once."""
    return _bytes_of({id(tensor): tensor for tensor in tensors_of(modules)}.values())


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _states(config: TrainConfig, simulation: Simulation, gpus: int) -> tuple[int, int, int]:
    """Compute the bytes of the optimizer states, of the gradients, and of an optimizer step."""
    average, settings = config.generator_ema, _zero(config)
    optimizer, kept, temporary, steps = 0, 0, [0], []
    for engine in simulation.engines():
        # A discriminator's engine stays at stage 2.
        stage = config.zero.stage if isinstance(engine, SimulatedNetworkEngine) else min(config.zero.stage, 2)
        trained = sum(parameter.numel() for parameter in engine.parameters)
        share = _share(trained, gpus if stage >= 1 else 1)
        width = engine.parameters[0].element_size()
        # From stage 1 on, DeepSpeed copies the weights even if they are fp32.
        copies = 2 if width == _FP32_BYTES and stage == 0 else 3
        if engine is simulation.networks.generator and average is not None and not average.on_cpu:
            copies += 1
        optimizer += copies * _FP32_BYTES * share
        in_fp32 = engine.fp32_gradients and stage > 0
        if stage == 3:
            # Every engine allocates its gradients permanently.
            kept += (_FP32_BYTES if in_fp32 else width) * share
            steps.append(_FP32_BYTES * min(share, int(settings.sub_group_size)))
        elif in_fp32:
            # At stage 2 the fp32 sums are the gradients of the step. At stage 1 they are never partitioned or freed.
            kept += _FP32_BYTES * trained if stage == 1 else 0
            temporary.append(width * trained if stage == 1 else _FP32_BYTES * share)
        else:
            # At stage 2 the gradients of a second backward exist next to the accumulated ones.
            sets = 2 if stage == 2 and engine.backwards * config.data.accumulation > 1 else 1
            temporary.append(sets * width * (share if stage >= 2 else trained))
            steps.append((width + _FP32_BYTES) * share)
    return optimizer, kept + max(temporary), max(steps, default=0)


def _zero(config: TrainConfig, trained: int | None = None) -> DeepSpeedZeroConfig:
    settings = deepspeed_config(config, 0.0, config.zero.stage, trained=trained)
    return DeepSpeedZeroConfig(**settings["zero_optimization"])


def _buffers(config: TrainConfig, simulation: Simulation, network_bytes: int) -> int:
    """Compute the bytes of DeepSpeed's buffers.

    At stages 1 and 2 this is one bucket of gradients. At stage 3 it is one bucket per trained network, a copy of the
    reduced gradients, and the gathered weights. A bucket holds as many elements as the network trains, up to a limit.
    """
    stage = config.zero.stage
    if stage == 0:
        return 0
    width = 2 if config.model.precision == "bf16" else _FP32_BYTES
    buckets = []
    for engine in simulation.engines():
        trained = sum(parameter.numel() for parameter in engine.parameters)
        settings = _zero(config, trained)
        # At stage 2 the bucket has the gradients of one backward pass, in the type of the weights.
        wide = engine.fp32_gradients and stage != 2
        if stage < 3 or isinstance(engine, SimulatedNetworkEngine):
            buckets.append(int(settings.reduce_bucket_size) * (_FP32_BYTES if wide else width))
    if stage < 3:
        # Allocated for a backward pass and freed after it.
        return max(buckets)
    gathered = min(network_bytes, int(_zero(config).max_live_parameters) * width)
    return sum(buckets) + max(buckets) + gathered
