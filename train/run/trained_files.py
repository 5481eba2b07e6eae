"""The model files in a checkpoint, ready to use in ComfyUI or for an export.

A *branch* is a LoRA on frozen weights. A *recipe* is the sampling settings and the origin of the weights; every file
stores one.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from magicdistill_core.captions import caption_tensors
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
    """The model files of a run's trained weights: the generator or its LoRA, and the LoRA of the fake branch.

    Attributes:
        model: the model settings of the configuration.
        networks: the networks of the training.
        layout: the key layout of the generator's family.
        hidden: the network's hidden size.
        recipe: the generator's recipe without the update.
        base_kind: the base's kind for the recipe of a branch (`Recipe.base_kind`): `folder`, or None for one file.
        prompt: the null prompt to store in the generator's file.
        captions: the captions to store there, by caption; empty if there are none, or too many for a file.
        average: the average of the generator's weights, which is exported instead of them; None without one.
    """

    model: ModelConfig
    networks: Networks
    layout: LayoutMap
    hidden: int
    recipe: Recipe
    base_kind: str | None
    prompt: NullPrompt
    captions: Mapping[str, NullPrompt]
    average: GeneratorEma | None

    def exported_weights(self) -> AbstractContextManager[None]:
        """Return a context that puts the exported weights into the generator: the average if there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def write(self, folder: Path, update: int) -> None:
        """Write the current trained weights into a folder; a collective call.

        Args:
            folder: where to write the files.
            update: the number of generator updates made, for the recipe.

        Raises:
            CheckpointError: on the main process, if a file cannot be written.
        """
        # All collective calls come first: the writing below may fail on the main process only.
        fake = self._collect_branch(FAKE) if self._trains_fake else {}
        with self.exported_weights():
            trained = self._collect_branch(GENERATOR) if self._lora else collect_state(self._transformer(GENERATOR))
        if not is_main():
            return
        if self._trains_fake:
            self._save_branch(folder / FAKE_LORA_FILE, FAKE, fake, update)
        if self._lora:
            self._save_branch(folder / GENERATOR_LORA_FILE, GENERATOR, trained, update)
            return
        state = diffusers_to_file(self.layout, trained)
        # The conversion fuses some weights into new tensors. Free the originals before writing.
        trained.clear()
        recipe = self.recipe.model_copy(update={"training_step": update})
        save_checkpoint(folder / GENERATOR_FILE, state, recipe, self.prompt, captions=self.captions)

    def bytes(self) -> int:
        """Return the size of the files in bytes, without their headers."""
        if self._lora:
            files = [self._branch_tensors(GENERATOR)]
        else:
            files = [_shapes(self._transformer(GENERATOR)) | self._texts()]
        if self._trains_fake:
            files.append(self._branch_tensors(FAKE))
        return sum(tensor.numel() * tensor.element_size() for file in files for tensor in file.values())

    @property
    def _lora(self) -> bool:
        return self.model.mode == "lora"

    @property
    def _trains_fake(self) -> bool:
        return FAKE in self.networks.engines

    def _transformer(self, name: str) -> nn.Module:
        """Return the transformer that contains the weights of a role."""
        engine = self.networks.generator if name == GENERATOR else self.networks.fake
        return engine.network.transformer

    def _collect_branch(self, name: str) -> dict[str, Tensor]:
        return collect_state(self._transformer(name), partial(is_in_branch, name=name))

    def _branch_config(self, name: str) -> BranchConfig:
        return self.model.generator_branch if name == GENERATOR else self.model.fake_branch

    def _branch_tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a branch's file, on `meta` (without values)."""
        branches = branch_modules(_shapes(self._transformer(name)), name, self._branch_config(name).alpha, self.hidden)
        return lora_state(branches) | (self._texts() if name == GENERATOR else {})

    def _texts(self) -> dict[str, Tensor]:
        return null_prompt_tensors(self.prompt) | caption_tensors(self.captions)

    def _save_branch(self, path: Path, name: str, state: dict[str, Tensor], update: int) -> None:
        branch = self._branch_config(name)
        recipe = self.recipe.model_copy(
            update={
                "kind": f"{self.recipe.kind if name == GENERATOR else name}_lora",
                "training_step": update,
                "base_hash": self.recipe.teacher_hash,
                "base_kind": self.base_kind,
                "lora_rank": branch.rank,
                "lora_alpha": branch.alpha,
            }
        )
        texts = (self.prompt, self.captions) if name == GENERATOR else ()
        save_lora(path, branch_modules(state, name, branch.alpha, self.hidden), recipe, *texts)


def _shapes(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's full parameters on `meta` (without values), also if ZeRO-3 has partitioned them."""
    return {
        name: torch.empty(getattr(parameter, "ds_shape", parameter.shape), dtype=parameter.dtype, device="meta")
        for name, parameter in network.named_parameters()
    }
