"""The prompts of a batch: the captions of its samples, of which some are dropped."""

import torch
from torch import Tensor

from magicdistill_core.families.base import Family, NullPrompt
from magicdistill_core.prompt_templates import TITLES, i2v_template, mode_of_template

from ..config.training import TrainConfig
from ..data.dataset import LatentDataset
from ..data.dataset_index import DatasetError
from ..data.text_states import TextStates
from ..networks.prompts import PromptBatch, stack_prompts
from .draws import Draws


class BatchPrompts:
    """The prompts of samples by their numbers in the dataset.

    Every draw of dropped captions is a function of the seed, the update and the position in the global batch, so a
    resumed run drops the same captions.
    """

    def __init__(
        self, texts: TextStates, null: NullPrompt, draws: Draws, dropout: float, *, own_negatives: bool
    ) -> None:
        """Store where the prompts are read.

        Args:
            texts: the dataset's text states.
            null: the null prompt, which replaces dropped captions if the text encoder sees no image.
            draws: the random draws of the run.
            dropout: share of captions to drop.
            own_negatives: whether unconditional calls use the sample's own prompt of the empty text.
        """
        self._texts = texts
        self._null = null
        self._draws = draws
        self._dropout = dropout
        self._own_negatives = own_negatives

    def captions(self, indices: list[int]) -> PromptBatch:
        """Return the prompts of the samples' captions on the CPU; errors as in `TextStates.prompt`.

        Args:
            indices: the samples' numbers in the dataset.
        """
        return stack_prompts([self._prompt(index, empty=False) for index in indices])

    def drawn(self, indices: list[int], update: int, positions: list[int]) -> PromptBatch:
        """Return the prompts of the samples in a training batch, of which some are empty (`data.caption_dropout`).

        Args:
            indices: the samples' numbers in the dataset.
            update: number of the update, from 0, counted over all roles.
            positions: the samples' positions in the update's global batch.
        """
        dropped = [False] * len(indices)
        if self._dropout:
            drawn = self._draws.each("caption dropout", update, positions, _uniform)
            dropped = (drawn < self._dropout).tolist()
        return stack_prompts([self._prompt(index, empty=drop) for index, drop in zip(indices, dropped, strict=True)])

    def negatives(self, indices: list[int]) -> PromptBatch | None:
        """Return the prompts of the samples' unconditional calls; None if all use the negative prompt of the networks.

        Args:
            indices: the samples' numbers in the dataset.
        """
        return stack_prompts([self._prompt(i, empty=True) for i in indices]) if self._own_negatives else None

    def _prompt(self, index: int, *, empty: bool) -> NullPrompt:
        return self._texts.prompt(index, empty=empty) or self._null


def _uniform(generator: torch.Generator) -> Tensor:
    return torch.rand((), generator=generator)


def batch_prompts(
    config: TrainConfig, dataset: LatentDataset, family: Family, null: NullPrompt, draws: Draws
) -> BatchPrompts | None:
    """Return the prompts of a run that trains with captions; None for a run with the null prompt.

    Args:
        config: the training's configuration.
        dataset: its dataset.
        family: the teacher's family.
        null: the null prompt.
        draws: the random draws of the run.

    Raises:
        DatasetError: if the dataset has no captions, or their text states do not fit the teacher or the null prompt.
    """
    if not config.data.captions:
        return None
    texts = checked_texts(dataset)
    found = (texts.text_dim, texts.pooled_dim)
    expected = (null.text_states.shape[2], None if null.pooled is None else null.pooled.shape[1])
    if found != expected:
        raise DatasetError(
            f"The captions of {dataset.folder} have text states and pooled text of widths {found}, but the null prompt "
            f"has {expected}: another text encoder made them. Prepare the dataset with the text encoder of the teacher."
        )
    template = texts.index.template
    if template is not None and mode_of_template(template) not in (None, family.i2v_mode):
        raise DatasetError(
            f"The captions of {dataset.folder} were encoded for {TITLES[template]}, but the teacher takes its start "
            f"image by {family.i2v_mode}. Prepare the dataset with --template {i2v_template(family.i2v_mode)}."
        )
    own_negatives = (
        texts.index.sees_image and config.method.uses_negative_prompt and config.model.negative_prompt is None
    )
    return BatchPrompts(texts, null, draws, config.data.caption_dropout, own_negatives=own_negatives)


def checked_texts(dataset: LatentDataset) -> TextStates:
    """Return the text states of a dataset that must have captions.

    Args:
        dataset: the dataset.

    Raises:
        DatasetError: if it has none.
    """
    if dataset.texts is None:
        raise DatasetError(
            f"data.captions is true, but {dataset.folder} has no captions. Prepare it into a new folder with "
            f"`magicdistill prepare --text-encoder`, or set data.captions=false to train with the null prompt."
        )
    return dataset.texts
