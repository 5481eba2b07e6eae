"""Training methods: small classes on top of the shared loop and the objectives.

To add a method:

1. Write its settings in `train/config/methods.py` and add them to `AnyMethod`. The settings are a `MethodConfig` with:
   - `name: Literal[...]`;
   - `trained`: the roles that the method trains;
   - `uses_teacher`, if the method calls the frozen teacher;
   - `uses_negative_prompt`, if the method makes unconditional calls;
   - `recipe_fields`, if the exported model is not a few-step generator;
   - `start_file`, if the method does not start from the teacher.
2. Write its class in a module of this package: a `Method[ItsSettings]` with `headline`, `order` and `loss` (see
   `base.py`).
   - Draw noise and levels with `_noise` and `_level`, with one purpose string per use.
   - Read clean latents from `batch.latents`.
   - Call the networks through `self.networks` (`generator_velocity`, `score`, `teacher`).
   - If a term of the loss calls the trained network a second time, make it a separate part (`Loss.after`).
3. Add a line to `_METHODS`.

The loop, the checkpoints and the export use only these interfaces. One engine is built per role in `trained`: a method
with `trained = (GENERATOR,)` has one engine.
"""

from typing import Any

import torch

from ..config.methods import (
    CFGConfig,
    DMD2Config,
    DMDConfig,
    LCMConfig,
    MethodConfig,
    OneStepConfig,
    SFTConfig,
    W2SConfig,
)
from ..config.training import TrainConfig
from ..engines.networks import Networks
from .base import Loss, Method, MicroBatch
from .cfg import GuidanceDistillation
from .draws import Draws
from .lcm import LatentConsistency
from .matching import DistributionMatching
from .one_step import OneStep
from .sft import FineTuning

__all__ = ["Loss", "Method", "MicroBatch", "build_method"]

_METHODS: dict[type[MethodConfig], type[Method[Any]]] = {
    W2SConfig: DistributionMatching,
    DMDConfig: DistributionMatching,
    DMD2Config: DistributionMatching,
    OneStepConfig: OneStep,
    LCMConfig: LatentConsistency,
    CFGConfig: GuidanceDistillation,
    SFTConfig: FineTuning,
}


def build_method(config: TrainConfig, networks: Networks, draws: Draws, device: torch.device) -> Method[Any]:
    """Return the method that the configuration names.

    Args:
        config: the training's configuration.
        networks: the networks and engines of the training.
        draws: the random draws of the run.
        device: the device of the networks.
    """
    return _METHODS[type(config.method)](config.method, config, networks, draws, device)
