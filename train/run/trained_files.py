"""The files of trained weights that a checkpoint holds: at once usable, by ComfyUI or for an export."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.layouts.lora import lora_state
from magicdistill_core.layouts.modules import LayoutMap, diffusers_to_file
from magicdistill_core.lora_file import save_lora
from magicdistill_core.null_prompt import null_prompt_tensors
from magicdistill_core.recipe import Recipe

from ..config.methods import FAKE, GENERATOR
from ..config.training import BranchConfig, ModelConfig
from ..distributed import is_main
from ..engines.ema import GeneratorEma
from ..engines.engine import collect_state
from ..engines.networks import Networks
from ..networks.roles import branch_modules, is_in_branch
from ..run_folder import FAKE_LORA_FILE, GENERATOR_FILE, GENERATOR_LORA_FILE


@dataclass(frozen=True)
class TrainedFiles:
    """Writes them.

    Attributes:
        layout: of the generator's family.
        hidden: the network's hidden size.
        recipe: of the generator, but for the update.
        base_kind: what the recipe of a branch says of its base.
        prompt: what files that work by themselves carry.
        average: the generator's, which is what is exported, if there is one.
    """

    model: ModelConfig
    networks: Networks
    layout: LayoutMap
    hidden: int
    recipe: Recipe
    base_kind: str | None
    prompt: NullPrompt
    average: GeneratorEma | None

    def exported_weights(self) -> AbstractContextManager[None]:
        """Within, the generator has the weights that are exported: their average if there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def write(self, folder: Path, update: int) -> None:
        """Write the trained weights as they stand after generator update `update`; a collective call.

        Raises:
            CheckpointError: on the main process, if a file cannot be written.
        """
        # All that is collective comes before what may fail on the main process alone.
        fake = self._collect_branch(FAKE) if self._trains_fake else {}
        with self.exported_weights():
            trained = self._collect_branch(GENERATOR) if self._lora else collect_state(self._holder(GENERATOR))
        if not is_main():
            return
        if self._trains_fake:
            self._save_branch(folder / FAKE_LORA_FILE, FAKE, fake, update)
        if self._lora:
            self._save_branch(folder / GENERATOR_LORA_FILE, GENERATOR, trained, update)
            return
        state = diffusers_to_file(self.layout, trained)
        # What was fused is not held twice while it is written.
        trained.clear()
        recipe = self.recipe.model_copy(update={"training_step": update})
        save_checkpoint(folder / GENERATOR_FILE, state, recipe, self.prompt)

    def bytes(self) -> int:
        """What the files take, but for their headers."""
        if self._lora:
            files = [self._branch_tensors(GENERATOR)]
        else:
            files = [_shapes(self._holder(GENERATOR)) | null_prompt_tensors(self.prompt)]
        if self._trains_fake:
            files.append(self._branch_tensors(FAKE))
        return sum(tensor.numel() * tensor.element_size() for file in files for tensor in file.values())

    @property
    def _lora(self) -> bool:
        return self.model.mode == "lora"

    @property
    def _trains_fake(self) -> bool:
        return FAKE in self.networks.engines

    def _holder(self, name: str) -> nn.Module:
        """The network of a role."""
        engine = self.networks.generator if name == GENERATOR else self.networks.fake
        return engine.network.transformer

    def _collect_branch(self, name: str) -> dict[str, Tensor]:
        return collect_state(self._holder(name), partial(is_in_branch, name=name))

    def _size(self, name: str) -> BranchConfig:
        return self.model.generator_branch if name == GENERATOR else self.model.fake_branch

    def _branch_tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a branch's file, without their values."""
        branches = branch_modules(_shapes(self._holder(name)), name, self._size(name).alpha, self.hidden)
        return lora_state(branches) | null_prompt_tensors(self.prompt if name == GENERATOR else None)

    def _save_branch(self, path: Path, name: str, state: dict[str, Tensor], update: int) -> None:
        size = self._size(name)
        recipe = self.recipe.model_copy(
            update={
                "kind": f"{self.recipe.kind if name == GENERATOR else name}_lora",
                "training_step": update,
                "base_hash": self.recipe.teacher_hash,
                "base_kind": self.base_kind,
                "lora_rank": size.rank,
                "lora_alpha": size.alpha,
            }
        )
        prompt = self.prompt if name == GENERATOR else None
        save_lora(path, branch_modules(state, name, size.alpha, self.hidden), recipe, prompt)


def _shapes(network: nn.Module) -> dict[str, Tensor]:
    """A network's parameters, whole, without their values."""
    return {
        name: torch.empty(getattr(parameter, "ds_shape", parameter.shape), dtype=parameter.dtype, device="meta")
        for name, parameter in network.named_parameters()
    }
