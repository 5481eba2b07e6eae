"""Writing of text states into a latent dataset; `text_index.py` describes the format."""

from collections.abc import Callable
from pathlib import Path

import torch

from magicdistill_core.families.base import NullPrompt
from magicdistill_core.safetensors_file import write_safetensors

from .finite import not_finite
from .text_index import POOLED, TEXT_PREFIX, TEXT_STATES, SamplePrompts, TextFile, TextIndex

# A function that encodes a text.
Encode = Callable[[str], NullPrompt]


class TextWriter:
    """A writer that adds prompts to a dataset. `LatentWriter` owns one, and writes its files before the index.

    Attributes:
        index: the text states in the dataset's files.
        pending_bytes: size of the prompts that wait to be written.
    """

    def __init__(self, folder: Path, index: TextIndex) -> None:
        """Continue the text states of a dataset.

        Args:
            folder: the dataset's folder.
            index: the text states that are already in the dataset.
        """
        self._folder = folder
        self.index = index
        self._captions = index.captions
        self._numbers = {caption: number for number, caption in enumerate(self._captions)}
        self._pending: list[NullPrompt] = []
        self.pending_bytes = 0
        self._widths: tuple[int, int | None] | None = None

    def caption(self, prompts: SamplePrompts) -> str:
        """Return the caption of a sample."""
        return self._captions[prompts.caption]

    def refer(self, caption: str, encode: Encode) -> SamplePrompts:
        """Return the prompts of a sample, and encode what is not yet in the dataset.

        Args:
            caption: the sample's caption; "" for none.
            encode: encodes a text. If the encoder sees the start image, it encodes the text with the sample's image.

        Raises:
            ValueError: if the encoder made values that are not finite, or a prompt of another shape than those before.
        """
        if not self.index.sees_image:
            if caption not in self._numbers:
                self._numbers[caption] = self._add(caption, encode(caption))
            return SamplePrompts(caption=self._numbers[caption])
        empty = self._add("", encode(""))
        return SamplePrompts(caption=self._add(caption, encode(caption)) if caption else empty, empty=empty)

    def flush(self) -> None:
        """Write the waiting prompts as a file, and add it to `index`.

        Raises:
            CheckpointError: if the file cannot be written; the prompts keep waiting.
        """
        if not self._pending:
            return
        name = f"{TEXT_PREFIX}{len(self.index.files):05d}.safetensors"
        tensors = {TEXT_STATES: torch.cat([prompt.text_states[0] for prompt in self._pending])}
        pooled = [prompt.pooled for prompt in self._pending if prompt.pooled is not None]
        if pooled:
            tensors[POOLED] = torch.cat(pooled)
        write_safetensors(self._folder / name, tensors, {})
        file = TextFile(
            file=name,
            bytes=(self._folder / name).stat().st_size,
            captions=self._captions[-len(self._pending) :],
            tokens=[prompt.text_states.shape[1] for prompt in self._pending],
        )
        self.index = self.index.model_copy(update={"files": [*self.index.files, file]})
        self._pending, self.pending_bytes = [], 0

    def _add(self, caption: str, prompt: NullPrompt) -> int:
        parts = {"text states": prompt.text_states, "pooled text": prompt.pooled}
        for name, tensor in parts.items():
            if tensor is not None and (found := not_finite(tensor)):
                raise ValueError(f"The text encoder made {name} with {found} of the caption {caption!r:.80}.")
        shape = prompt.text_states.shape
        widths = shape[-1], None if prompt.pooled is None else prompt.pooled.shape[-1]
        if len(shape) != 3 or shape[0] != 1 or self._widths not in (None, widths):
            raise ValueError(
                f"The text encoder made text states of {list(shape)} of the caption {caption!r:.80}, expected [1, "
                f"tokens, width] with the width of the other captions."
            )
        self._widths = widths
        # Copied: an encoder may return a view of a larger tensor.
        pooled = None if prompt.pooled is None else prompt.pooled.detach().cpu().clone()
        text = prompt.text_states.detach().cpu().clone()
        self._pending.append(NullPrompt(text, pooled))
        self.pending_bytes += text.nbytes + (0 if pooled is None else pooled.nbytes)
        self._captions.append(caption)
        return len(self._captions) - 1
