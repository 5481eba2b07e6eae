"""Measurements of the training signal at intervals: is it above the noise of bf16, and above Adam's epsilon?

Distribution matching trains the generator with the difference of two scores that are equal at first. While it is small,
bf16 rounds it away, and Adam makes steps of full length with what is left. Adam's epsilon can suppress small gradients
as well. Both faults make a training useless without any error.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config.methods import FAKE, GENERATOR
from ..config.training import TrainConfig
from ..distributed import mean_over_processes
from ..engines.networks import Networks
from ..engines.state import EngineState
from ..methods import Method, MicroBatch
from .signal_findings import AGREEMENT, below_eps, signal_findings


class SignalMeter:
    """The measurements of one run: `signal/agreement`, `signal/generator_below_eps` and `signal/fake_below_eps`."""

    def __init__(self, config: TrainConfig, networks: Networks, method: Method[Any]) -> None:
        """Prepare the measurements.

        Args:
            config: the training's configuration.
            networks: the networks and engines of the training.
            method: the training method.
        """
        self._config = config
        self._networks = networks
        self._method = method

    def due(self, position: int) -> bool:
        """Return whether a measurement is due after a round: every `logging.signal_every` updates.

        The last round of the fake warm-up is measured too; without a warm-up the first update.

        Args:
            position: number of generator updates made; in the fake warm-up minus the number of rounds left.
        """
        every = self._config.logging.signal_every
        first = 0 if self._config.method.warmup_rounds else 1
        return every > 0 and (position == first or (position > 0 and position % every == 0))

    def measure(self, batch: MicroBatch, device: torch.device) -> dict[str, float]:
        """Measure the signal; a collective call.

        The agreement is measured only for networks in bf16 (see `Method.agreement`). The share below Adam's epsilon is
        that of the weights with `sqrt(v) < eps`, where v is Adam's bias-corrected average of the squared gradient.
        Adam divides by `sqrt(v) + eps`, so these weights move less than half as far as without epsilon.

        Args:
            batch: this process's micro-batch to measure on.
            device: the device of the networks.

        Returns:
            The metrics by name, over all processes; a role that has made no update is left out.
        """
        sums: dict[str, Tensor | float] = {}
        if self._config.model.precision == "bf16" and (agreement := self._method.agreement(batch)) is not None:
            sums[AGREEMENT] = agreement
        optimizers = {GENERATOR: self._config.generator_optimizer, FAKE: self._config.fake_optimizer}
        roles = [role for role in optimizers if role in self._networks.engines]
        for role in roles:
            optimizer = optimizers[role]
            assert optimizer is not None
            below, total = EngineState(self._networks.engine(role).engine).below(optimizer.eps, optimizer.betas[1])
            sums[below_eps(role)], sums[role] = below, total
        means = mean_over_processes(sums, device)
        for role in roles:
            if total := means.pop(role):
                means[below_eps(role)] /= total
            else:
                del means[below_eps(role)]
        return means

    def findings(self, metrics: Mapping[str, float]) -> tuple[str, ...]:
        """Return one message per measurement that shows a signal below its noise (see `signal_findings`)."""
        return signal_findings(metrics, self._config)
