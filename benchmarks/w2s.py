"""Weak-to-strong updates by the trainer's own classes with a clock at every phase, and their bare network calls.

To be imported after `train.distributed.prepare_environment`: DeepSpeed reads the environment when it is imported.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.families.base import Condition, NullPrompt
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
    """Seconds by phase; the device is waited for at both ends of each."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add what the block takes to a phase."""
        self._synchronize()
        began = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class TimedNetworks(Networks):
    """Networks whose scores are timed: without gradient as scores, with it as the fake update's forward."""

    watch: Stopwatch = field(kw_only=True)

    def score(self, condition: Condition, weight: float, *, unconditional: bool = False) -> Velocity:
        velocity = super().score(condition, weight, unconditional=unconditional)

        def timed(x: Tensor, sigma: Tensor) -> Tensor:
            with self.watch.phase(FORWARD if torch.is_grad_enabled() else SCORES):
                return velocity(x, sigma)

        return timed


class TimedMethod(DistributionMatching[W2SConfig]):
    """The method with its rollouts timed."""

    def __init__(self, config: TrainConfig, networks: TimedNetworks, draws: Draws, device: torch.device) -> None:
        assert isinstance(config.method, W2SConfig)
        super().__init__(config.method, config, networks, draws, device)
        self.watch = networks.watch

    def _rollout(self, batch: MicroBatch) -> Tensor:
        with self.watch.phase(ROLLOUT):
            return super()._rollout(batch)


class FixedExit(Draws):
    """Draws whose rollouts all leave at one level, so that the number of forwards is known before."""

    def __init__(self, seed: int, level: int) -> None:
        super().__init__(seed)
        self._level = level

    def exit_index(self, update: int, levels: int) -> int:
        return self._level


def random_checkpoint(
    shape: NetworkShape, device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> Checkpoint:
    """A teacher of random weights, in the file layout, made on the device."""
    network = random_network(shape, device, dtype, generator)
    return Checkpoint(diffusers_to_file(HUNYUAN_VIDEO, network.state_dict()), shape, None, None, "random weights")


class Subject:
    """A distillation in mode `lora` on random data, to be measured on clips of any size."""

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
        """Take DeepSpeed's hooks off the parameters, which would hold the network for good; no updates after it."""
        for role in self.networks.engines.values():
            role.engine.destroy()

    @property
    def strong(self) -> Role:
        """The role in which the bare calls are made; every role costs the same."""
        return Role(FAKE, self._method.a_strong)

    @property
    def fake_updates(self) -> int:
        """Fake updates in one round."""
        return self._method.fake_updates

    @property
    def _method(self) -> W2SConfig:
        assert isinstance(self.config.method, W2SConfig)
        return self.config.method


class Course:
    """Updates of a subject on one clip, and the bare network calls that they consist of.

    The latter are made with everything prepared: the role set, the inputs made, no engine, no loss. `held` must be
    entered around them.
    """

    def __init__(self, subject: Subject, clip: Clip, draws: Draws, generator: torch.Generator) -> None:
        self.subject = subject
        self.draws = draws
        self.method = TimedMethod(subject.config, subject.networks, draws, subject.device)
        # As the dataset gives it, in float32.
        self.x, self.condition = random_clip(clip, subject.device, torch.float32, generator)
        sigma = torch.full((1,), 0.7, device=subject.device)
        self._inputs = network_inputs(self.x.to(subject.dtype), sigma, self.condition, subject.prompt)
        self._branch = branch_parameters(subject.transformer, FAKE)
        self._updates = 0
        self._bare_updates = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """The role of the bare calls, set once."""
        switch = self.subject.switch
        with switch.held(switch.state_of(self.subject.strong)):
            yield

    def update(self, role: str) -> dict[str, Tensor | float]:
        """One optimizer update of a role, as the trainer makes it; its metrics."""
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
        """A whole round: the fake updates, the generator's, and the metrics averaged."""
        metrics: dict[str, Tensor | float] = {}
        for role in self.method.order:
            metrics |= self.update(role)
        with self.subject.watch.phase(COMMUNICATION):
            return mean_over_processes(metrics, self.subject.device)

    def bare_forward(self) -> Tensor:
        """One call of the network without gradient."""
        with torch.no_grad():
            return self._call()

    def base_forward(self) -> Tensor:
        """The same of the base alone, without a branch."""
        switch = self.subject.switch
        with switch.held(switch.state_of(BASE)):
            return self.bare_forward()

    def backward_with_attention_kept(self) -> None:
        """`bare_backward` with attention kept instead of recomputed."""
        transformer, kept = self.subject.transformer, self.subject.config.model.keep_attention
        checkpoint_activations(transformer, keep_attention=True)
        try:
            self.bare_backward()
        finally:
            checkpoint_activations(transformer, kept)

    def bare_backward(self) -> None:
        """One call of the network with gradient, and the backward to a branch's parameters."""
        velocity = self._call()
        # Not `backward`, which would run DeepSpeed's hooks.
        torch.autograd.grad(velocity, self._branch, velocity.detach())

    def bare_round(self) -> None:
        """The network calls of the next round that `round` makes, bare; the one keeps pace with the other."""
        for role in self.method.order:
            walked = self.draws.exit_index(self._bare_updates, self.subject.config.schedule.steps)
            self._bare_updates += 1
            forwards, backwards = calls(role, walked)
            for _ in range(forwards):
                self.bare_forward()
            for _ in range(backwards):
                self.bare_backward()

    def _call(self) -> Tensor:
        velocity: Tensor = self.subject.transformer(**self._inputs, return_dict=False)[0]
        return velocity


def calls(role: str, exit_index: int) -> tuple[int, int]:
    """How many network calls without and with gradient one update makes whose rollout leaves at a level.

    The fake update rolls out without gradient, `exit_index + 1` calls, and learns from one; the generator's has the
    last call of its rollout with gradient, and two scores.
    """
    return (exit_index + 2, 1) if role == GENERATOR else (exit_index + 1, 1)
