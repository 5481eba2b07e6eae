"""Training methods: small classes over the shared loop and the objectives.

To add one:

1. its settings in `train/config/methods.py`: a `MethodConfig` with `name: Literal[...]`, the roles that it trains
   (`trained`), `uses_teacher` if it calls the frozen teacher, `uses_negative_prompt` if it makes calls without the
   prompt,
   `recipe_fields` if its export is not a few-step generator, `start_file` if it does not start from the teacher;
   joined to `AnyMethod`;
2. its class in a module here: a `Method[ItsSettings]` with `headline`, `order` and `loss` (see `base.py`); noise and
   levels come from `_noise` and `_level` with a purpose of their own, clean latents from `batch.latents`, weights from
   `self.networks` (`generator_velocity`, `score`, `teacher`); a term that asks the trained network once more is a part
   of its own (`Loss.after`);
3. a line in `_METHODS`.

Loop, checkpoints and export know methods by these alone. Engines are made for the roles in `trained`: a method with
`trained = (GENERATOR,)` has one.
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
    """The method that a configuration names."""
    return _METHODS[type(config.method)](config.method, config, networks, draws, device)
