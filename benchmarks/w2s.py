"""Weak-to-strong updates with the trainer's own classes, timed by phase, and the bare network calls in them.

A bare call is a network call with prepared inputs: no loss, no engine, no optimizer. The time of an update divided by
the time of its bare calls shows the trainer's overhead. An update's exit level is the level at which its rollout stops.

Call `train.distributed.prepare_environment` before you import this module: DeepSpeed reads the environment at import.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.families.hunyuan_video import NetworkShape
from magicdistill_core.flow import Velocity
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.modules import diffusers_to_file
from train.config.methods import FAKE, GENERATOR, W2SConfig
from train.config.training import TrainConfig
from train.distributed import mean_over_processes
from train.engines.networks import Networks, build_networks
from train.methods import MicroBatch
from train.methods.draws import Draws
from train.methods.matching import DistributionMatching
from train.networks.families.hunyuan_video import network_inputs
from train.networks.prompts import Conditioning
from train.networks.roles import BASE, Role, branch_parameters, checkpoint_activations

from .models import random_clip, random_network
from .sizes import Clip

ROLLOUT, SCORES, FORWARD, BACKWARD, OPTIMIZER, COMMUNICATION = (
    "rollout",
    "scores",
    "forward",
    "backward",
    "optimizer",
    "communication",
)


class Stopwatch:
    """Seconds per phase of an update.

    Args:
        synchronize: waits for the device; called at the start and the end of every phase.
    """

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        self._synchronize()
        began = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class TimedNetworks(Networks):
    """Networks that time their scores.

    A call without gradient counts as phase `scores`. A call with gradient is the forward of a fake update and counts as
    phase `forward`.
    """

    watch: Stopwatch = field(kw_only=True)

    def score(self, condition: Conditioning, weight: float, *, unconditional: bool = False) -> Velocity:
        velocity = super().score(condition, weight, unconditional=unconditional)

        def timed(x: Tensor, sigma: Tensor) -> Tensor:
            with self.watch.phase(FORWARD if torch.is_grad_enabled() else SCORES):
                return velocity(x, sigma)

        return timed


class TimedMethod(DistributionMatching[W2SConfig]):
    """The weak-to-strong method with timed rollouts."""

    def __init__(self, config: TrainConfig, networks: TimedNetworks, draws: Draws, device: torch.device) -> None:
        assert isinstance(config.method, W2SConfig)
        super().__init__(config.method, config, networks, draws, device)
        self.watch = networks.watch

    def _rollout(self, batch: MicroBatch) -> Tensor:
        with self.watch.phase(ROLLOUT):
            return super()._rollout(batch)


class FixedExit(Draws):
    """Draws that always return the same exit level, so the number of forwards is known in advance."""

    def __init__(self, seed: int, level: int) -> None:
        super().__init__(seed)
        self._level = level

    def exit_index(self, update: int, levels: int) -> int:
        return self._level


def random_checkpoint(
    shape: NetworkShape, device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> Checkpoint:
    """Make a teacher with random weights in the file layout, on the device."""
    network = random_network(shape, device, dtype, generator)
    return Checkpoint(diffusers_to_file(HUNYUAN_VIDEO, network.state_dict()), shape, None, None, "random weights")


class Subject:
    """The distillation that is measured: mode `lora`, random weights and data, clips of any size."""

    def __init__(
        self, config: TrainConfig, teacher: Checkpoint, prompt: NullPrompt, device: torch.device, watch: Stopwatch
    ) -> None:
        networks = build_networks(config, teacher, prompt, device)
        self.networks = TimedNetworks(
            networks.engines, networks.generator_role, networks.base, networks.pair_generator, watch=watch
        )
        self.config = config
        self.device = device
        self.watch = watch
        self.prompt = networks.fake.network.prompt
        self.transformer = networks.fake.network.transformer
        self.switch = networks.fake.network.switch
        self.dtype = next(self.transformer.parameters()).dtype

    def release(self) -> None:
        """Remove DeepSpeed's hooks from the parameters, because they would keep the network in memory.

        No update is possible afterwards.
        """
        for role in self.networks.engines.values():
            role.engine.destroy()

    @property
    def strong(self) -> Role:
        """The role of the bare calls. Calls in any role with a branch take the same time."""
        return Role(FAKE, self._method.a_strong)

    @property
    def _method(self) -> W2SConfig:
        assert isinstance(self.config.method, W2SConfig)
        return self.config.method


class Course:
    """Updates of a distillation on one clip, and the bare calls in them.

    Make bare calls only within the context `held`, which sets their role.

    Args:
        subject: the distillation.
        clip: the size of the clip.
        draws: noise, levels and exit levels of the updates.
        generator: makes the clip.
    """

    def __init__(self, subject: Subject, clip: Clip, draws: Draws, generator: torch.Generator) -> None:
        self.subject = subject
        self.draws = draws
        self.method = TimedMethod(subject.config, subject.networks, draws, subject.device)
        # In float32, like the samples of a dataset.
        self.x, self.condition = random_clip(clip, subject.device, torch.float32, generator)
        sigma = torch.full((1,), 0.7, device=subject.device)
        self._inputs = network_inputs(self.x.to(subject.dtype), sigma, self.condition, subject.prompt)
        self._branch = branch_parameters(subject.transformer, FAKE)
        self._updates = 0
        self._bare_updates = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Set the role of the bare calls within the context."""
        switch = self.subject.switch
        with switch.held(switch.state_of(self.subject.strong)):
            yield

    def update(self, role: str) -> dict[str, Tensor | float]:
        """Make one update of a role as the trainer does, and return its metrics."""
        watch, engine = self.subject.watch, self.subject.networks.engine(role)
        number, self._updates = self._updates, self._updates + 1
        batch = MicroBatch(self.condition, [0], number, tuple(self.x.shape[1:]), lambda: self.x)
        loss = self.method.loss(role, batch)
        with watch.phase(BACKWARD):
            metrics = loss.backward(engine, last=True)
        with watch.phase(OPTIMIZER):
            norm = engine.step(number)
        return {**metrics, f"{role}/gradient_norm": float("nan") if norm is None else norm}

    def round(self) -> dict[str, float]:
        """Make one complete round (the fake updates and the generator update) and return the averaged metrics."""
        metrics: dict[str, Tensor | float] = {}
        for role in self.method.order:
            metrics |= self.update(role)
        with self.subject.watch.phase(COMMUNICATION):
            return mean_over_processes(metrics, self.subject.device)

    def bare_forward(self) -> Tensor:
        """Make one bare call without gradient."""
        with torch.no_grad():
            return self._call()

    def base_forward(self) -> Tensor:
        """Make one bare call without gradient and without a branch."""
        switch = self.subject.switch
        with switch.held(switch.state_of(BASE)):
            return self.bare_forward()

    def backward_with_attention_kept(self) -> None:
        """Like `bare_backward`, but keep attention's outputs instead of recomputing them in the backward."""
        transformer, kept = self.subject.transformer, self.subject.config.model.keep_attention
        checkpoint_activations(transformer, keep_attention=True)
        try:
            self.bare_backward()
        finally:
            checkpoint_activations(transformer, kept)

    def bare_backward(self) -> None:
        """Make one bare call with gradient, and the backward to the parameters of the fake branch."""
        velocity = self._call()
        # Not `velocity.backward`, because it would run DeepSpeed's hooks.
        torch.autograd.grad(velocity, self._branch, velocity.detach())

    def bare_round(self) -> None:
        """Make the bare calls of one round, without the round itself.

        The n-th `bare_round` makes exactly the network calls of the n-th `round`: both draw the same exit levels.
        """
        for role in self.method.order:
            exit_index = self.draws.exit_index(self._bare_updates, self.subject.config.schedule.steps)
            self._bare_updates += 1
            forwards, backwards = calls(role, exit_index)
            for _ in range(forwards):
                self.bare_forward()
            for _ in range(backwards):
                self.bare_backward()

    def _call(self) -> Tensor:
        velocity: Tensor = self.subject.transformer(**self._inputs, return_dict=False)[0]
        return velocity


def calls(role: str, exit_index: int) -> tuple[int, int]:
    """Count the network calls of one update.

    A fake update makes a rollout of `exit_index + 1` calls without gradient, and one call with gradient. A generator
    update makes a rollout of `exit_index + 1` calls, of which the last has a gradient, and two calls for the scores.

    Args:
        role: `FAKE` or `GENERATOR`.
        exit_index: the exit level of the rollout.

    Returns:
        The number of calls without gradient, and with gradient.
    """
    return (exit_index + 2, 1) if role == GENERATOR else (exit_index + 1, 1)
