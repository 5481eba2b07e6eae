"""What a training holds on each GPU: its updates are made on tensors without data, DeepSpeed's share is computed."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import Tensor, nn

from magicdistill_core.families.base import StartImage

from ..config.training import TrainConfig
from ..data.dataset import IMAGE_FEATURES, IMAGE_LATENTS, LATENTS, DatasetError, LatentDataset, sample_shapes
from ..engines.engine import Engine, NetworkCalls, NetworkEngine, deepspeed_config
from ..engines.networks import Factories, Networks, build_networks
from ..engines.teacher import Teacher
from ..methods import build_method
from ..methods.draws import Draws
from ..networks.discriminator import Discriminator
from ..networks.roles import RoleNetwork
from .bytes_held import META, BytesHeld, fused_attention

logger = logging.getLogger(__name__)

_FP32_BYTES = 4
# Of a GPU's memory; CUDA, communication and what the allocator cannot use take the rest.
_USABLE = 0.95


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU.

    Attributes:
        weights: of all networks and branches.
        optimizer: the weights in fp32, Adam's two averages, and the generator's average if it is kept there.
        gradients: this process' share of those that are there at a time.
        buffers: DeepSpeed's, in which gradients travel and, at stage 3, weights.
        updates: what the calls of one update of a role hold at most besides all that.
        step: what the optimizers' steps hold at most, when the calls hold nothing: gradients in fp32.
        start: the networks, before DeepSpeed divides them.
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
        """The most at a time while it trains."""
        return self.weights + self.optimizer + self.gradients + self.buffers + max(*self.updates.values(), self.step)

    def facts(self) -> dict[str, str]:
        """For people, in GB of 10^9 bytes."""
        parts = {
            "weights": self.weights,
            "optimizer": self.optimizer,
            "gradients": self.gradients,
            "DeepSpeed's buffers": self.buffers,
            **{f"one update: {role}": size for role, size in self.updates.items()},
            "an optimizer's step": self.step,
        }
        return {name: f"{size / 1e9:.2f} GB" for name, size in parts.items()} | {
            "in all, at most": f"{self.total / 1e9:.2f} GB on each GPU, where one update is made at a time",
            "at the start": f"{self.start / 1e9:.2f} GB of networks, before they are divided",
            "not in it": "CUDA itself, the VAE of validation, and what the allocator cannot use: some GB",
        }


class _NetworkEngine(NetworkEngine):
    """A role without DeepSpeed, whose gradients go as they come, as they go into DeepSpeed's buffer."""

    def __init__(
        self, network: RoleNetwork, parameters: list[nn.Parameter], config: TrainConfig, *settings: object
    ) -> None:
        self.network = network
        self.called = network
        # Of one micro-batch.
        self.backwards = 0
        self.parameters = _trained(network, parameters, config)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.backwards += 1
        loss.backward()


class _DiscriminatorEngine(Engine):
    """The same of a discriminator."""

    backwards = 1

    def __init__(self, discriminator: Discriminator, config: TrainConfig, *settings: object) -> None:
        self.engine = SimpleNamespace(module=discriminator)
        self.parameters = _trained(discriminator, list(discriminator.parameters()), config)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()


class _FrozenNetwork(NetworkCalls):
    """A network that is only asked."""

    def __init__(self, network: RoleNetwork, config: TrainConfig) -> None:
        self.network = network.requires_grad_(False)
        self.called = network


def sample_of(
    config: TrainConfig, teacher: Teacher, frames: int | None, height: int | None, width: int | None
) -> dict[str, tuple[int, ...]]:
    """The tensors of one sample: of the configured dataset, or as one of the given clips would be.

    Args:
        frames, height, width: of clips; what is None is the dataset's.

    Raises:
        DatasetError: if the dataset is asked for and absent or damaged, or for another family.
        MagicDistillError: if there are no such clips.
    """
    if frames is None or height is None or width is None:
        try:
            dataset = LatentDataset(config.data.dataset)
        except DatasetError as error:
            raise DatasetError(
                f"{error} For clips that are not there yet give --frames, --height and --width."
            ) from error
        dataset.check_family(teacher.checkpoint.family())
        index = dataset.index
        frames, height, width = frames or index.frames, height or index.height, width or index.width
    return sample_shapes(teacher.checkpoint.architecture.name, frames, height, width)


def memory_of(config: TrainConfig, teacher: Teacher, shapes: Mapping[str, tuple[int, ...]], gpus: int) -> Memory:
    """What a training takes.

    Weights, and what calls of networks hold, are found by building the networks and making an update of each on `meta`;
    the rest follows from DeepSpeed's way of dividing, and its settings.

    Args:
        shapes: of the tensors of one sample, as `sample_shapes` gives them.
        gpus: on which the training runs, one process each.

    Raises:
        ConfigError: if the method does not suit the teacher.
    """
    factories = Factories(_NetworkEngine, _DiscriminatorEngine, _FrozenNetwork)
    networks = build_networks(config, teacher.checkpoint, teacher.prompt, META, teacher.negative, factories)
    stage = config.zero.stage
    modules, discriminators = _modules(networks)
    whole, discriminator = _bytes(modules), _bytes(discriminators)
    divisor = gpus if stage == 3 else 1
    pair_generator = _bytes([networks.pair_generator.network.network]) if networks.pair_generator is not None else 0
    updates = _updates(config, teacher, networks, shapes)
    optimizer, gradients, step = _states(config, networks, gpus)
    return Memory(
        _share(whole, divisor) + discriminator,
        optimizer,
        gradients,
        _buffers(config, networks, whole),
        updates,
        step,
        # The few-step generator is divided before the others are loaded.
        whole + discriminator - pair_generator + _share(pair_generator, divisor),
    )


def tell_memory(memory: Memory, room: int) -> None:
    """Say, before anything is loaded, what a run will take of a GPU's `room` bytes; a warning if that is too much."""
    found = f"{memory.total / 1e9:.1f} GB (at the start {memory.start / 1e9:.1f} GB)"
    if max(memory.total, memory.start) <= _USABLE * room:
        logger.info("Each GPU will hold about %s of the %.1f GB that it has", found, room / 1e9)
        return
    logger.warning(
        "Each GPU will hold about %s of the %.1f GB that it has, which leaves too little for CUDA, communication and "
        "validation: expect this run to end for lack of memory. Take more GPUs at zero.stage=3, shorter or smaller "
        "clips, model.activation_checkpointing=true, or model.mode=lora; `magicdistill memory` says what each gives.",
        found,
        room / 1e9,
    )


def _share(number: int, parts: int) -> int:
    return -(-number // parts)


def _trained(module: nn.Module, parameters: list[nn.Parameter], config: TrainConfig) -> list[nn.Parameter]:
    """What DeepSpeed does to them that takes or frees memory: the precision, and gradients that go."""
    if config.model.precision == "bf16":
        for parameter in module.parameters():
            parameter.data = parameter.data.bfloat16()

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(drop)
    return parameters


def _modules(networks: Networks) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules of all networks, each once, and those of the discriminators."""
    modules: list[nn.Module] = []
    discriminators: list[nn.Module] = []
    for engine in networks.engines.values():
        if isinstance(engine, NetworkEngine):
            modules.append(engine.network)
        else:
            discriminators.append(engine.engine.module)
    pair_generator = networks.pair_generator
    asked = (networks.base, None if pair_generator is None else pair_generator.network)
    modules += [calls.network for calls in asked if calls is not None]
    return modules, discriminators


def _tensors(modules: list[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def _bytes(modules: list[nn.Module]) -> int:
    """Of all weights, each counted once."""
    return _bytes_of({id(tensor): tensor for tensor in _tensors(modules)}.values())


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _states(config: TrainConfig, networks: Networks, gpus: int) -> tuple[int, int, int]:
    """What optimizers and gradients take, and what a step does besides; after the updates were made."""
    average, settings = config.generator_ema, _zero(config)
    optimizer, gradients, steps = 0, [], []
    for engine in networks.engines.values():
        assert isinstance(engine, _NetworkEngine | _DiscriminatorEngine)
        # A discriminator's engine stays at stage 2.
        stage = config.zero.stage if isinstance(engine, _NetworkEngine) else min(config.zero.stage, 2)
        trained = sum(parameter.numel() for parameter in engine.parameters)
        share = _share(trained, gpus if stage >= 1 else 1)
        width = engine.parameters[0].element_size()
        # From stage 1 on there is a copy of fp32 weights too.
        copies = 2 if width == _FP32_BYTES and stage == 0 else 3
        if engine is networks.generator and average is not None and not average.on_cpu:
            copies += 1
        optimizer += copies * _FP32_BYTES * share
        # At stage 2 those of a further backward come beside those that are kept.
        kept = 2 if stage == 2 and engine.backwards * config.data.accumulation > 1 else 1
        gradients.append(kept * width * (share if stage >= 2 else trained))
        steps.append(
            _FP32_BYTES * min(share, int(settings.sub_group_size)) if stage == 3 else (width + _FP32_BYTES) * share
        )
    # At stage 3 every engine has a place for its own, for good.
    return optimizer, sum(gradients) if config.zero.stage == 3 else max(gradients), max(steps)


def _zero(config: TrainConfig) -> DeepSpeedZeroConfig:
    return DeepSpeedZeroConfig(**deepspeed_config(config, 0.0, config.zero.stage)["zero_optimization"])


def _buffers(config: TrainConfig, networks: Networks, whole: int) -> int:
    """DeepSpeed's: a bucket of gradients; at stage 3 one for each network, its copy, and weights that are gathered."""
    settings = _zero(config)
    width = 2 if config.model.precision == "bf16" else _FP32_BYTES
    bucket = int(settings.reduce_bucket_size) * width
    if config.zero.stage < 3:
        # Made for a backward, and freed after it.
        return bucket if config.zero.stage else 0
    trained = [
        _bytes_of(engine.parameters) for engine in networks.engines.values() if isinstance(engine, _NetworkEngine)
    ]
    return bucket * len(trained) + min(bucket, max(trained)) + min(whole, int(settings.max_live_parameters) * width)


def _updates(
    config: TrainConfig, teacher: Teacher, networks: Networks, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    method = build_method(config, networks, Draws(config.seed), META)
    modules, discriminators = _modules(networks)
    count = config.data.micro_batch

    def empty(name: str) -> Tensor:
        return torch.empty(count, *shapes[name], device=META)

    held = {}
    for role in dict.fromkeys(method.order):
        with BytesHeld(_tensors([*modules, *discriminators])) as memory, fused_attention():
            images = StartImage(empty(IMAGE_LATENTS), empty(IMAGE_FEATURES) if IMAGE_FEATURES in shapes else None)
            positions = list(range(count))
            batch = method.micro_batch(
                teacher.checkpoint.family(), images, shapes[LATENTS], 0, positions, lambda: empty(LATENTS)
            )
            method.loss(role, batch).backward(networks.engine(role), last=True)
        held[role] = memory.peak
    return held
