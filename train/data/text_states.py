"""Reading of the text states in a latent dataset; `text_index.py` describes the format."""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from safetensors import SafetensorError, safe_open

from magicdistill_core.captions import MAX_CAPTIONS
from magicdistill_core.errors import CheckpointError, cause
from magicdistill_core.families.base import NullPrompt
from magicdistill_core.files import enough_memory
from magicdistill_core.safetensors_file import TensorInfo, read_header

from .dataset_index import DatasetError, damaged
from .finite import not_finite
from .text_index import POOLED, TEXT_STATES, SamplePrompts, TextFile, TextIndex


class TextStates:
    """Read access to the prompts of a dataset: text states and pooled text, read on demand."""

    def __init__(self, folder: Path, index: TextIndex, samples: Sequence[SamplePrompts]) -> None:
        """Check that the files are complete and that the samples name prompts that exist.

        Args:
            folder: the dataset's folder.
            index: the index's description of the text states.
            samples: the prompts of each sample, by the sample's number.

        Raises:
            DatasetError: if a file is missing, truncated or of another size, or a sample names a prompt that does not
                exist.
        """
        self.folder = folder
        self.index = index
        self.captions = index.captions
        self._samples = samples
        self._places = [(number, row) for number, file in enumerate(index.files) for row in range(len(file.captions))]
        self._starts = [[0, *accumulate(file.tokens)] for file in index.files]
        for number in range(len(index.files)):
            self._check(number)
        named = {number for sample in samples for number in (sample.caption, sample.empty) if number is not None}
        if missing := sorted(number for number in named if not 0 <= number < len(self.captions)):
            raise DatasetError(
                f"{folder} is not usable: its samples name the prompt {missing[0]}, but there are {len(self.captions)} "
                f"prompts, numbered from 0. Restore the index, or prepare the dataset again."
            )

    @property
    def text_dim(self) -> int:
        """Width of the text states."""
        return self._header(0)[TEXT_STATES].shape[1]

    @property
    def pooled_dim(self) -> int | None:
        """Width of the pooled text; None without pooled text."""
        header = self._header(0)
        return header[POOLED].shape[1] if POOLED in header else None

    @property
    def longest(self) -> int:
        """Number of tokens of the longest prompt."""
        return max(count for file in self.index.files for count in file.tokens)

    def caption(self, sample: int) -> str:
        """Return the caption of a sample."""
        return self.captions[self._samples[sample].caption]

    def prompt(self, sample: int, *, empty: bool = False) -> NullPrompt | None:
        """Read the prompt of a sample on the CPU, in the stored dtypes.

        Args:
            sample: the sample's number.
            empty: read the prompt of the empty text instead of the caption's.

        Returns:
            The prompt; None for the empty text if the encoder sees no image. The null prompt of the model then takes
            its place, because it is the same for all samples.

        Raises:
            DatasetError: if a file can no longer be read, or the prompt holds a NaN or an infinite value.
        """
        found = self._samples[sample]
        number = found.empty if empty else found.caption
        return None if number is None else self._read(number)

    @cached_property
    def vocabulary(self) -> dict[str, NullPrompt]:
        """The prompts by caption, without the empty one, for a dataset with few captions.

        Empty if there are more captions than a model file can carry, or if the text states depend on the images.
        """
        if self.index.sees_image:
            return {}
        numbers = {caption: number for number, caption in enumerate(self.captions) if caption}
        return {c: self._read(n) for c, n in numbers.items()} if len(numbers) <= MAX_CAPTIONS else {}

    def _read(self, number: int) -> NullPrompt:
        place, row = self._places[number]
        file, starts = self.index.files[place], self._starts[place]
        path = self.folder / file.file
        try:
            with enough_memory(path), safe_open(path, framework="pt") as opened:
                text = opened.get_slice(TEXT_STATES)[starts[row] : starts[row + 1]][None]
                has_pooled = POOLED in opened.keys()  # noqa: SIM118
                pooled = opened.get_slice(POOLED)[row : row + 1] if has_pooled else None
        except (SafetensorError, OSError, CheckpointError) as error:
            raise self._damaged(file, cause(error.__cause__ or error)) from error
        for name, tensor in ((TEXT_STATES, text), (POOLED, pooled)):
            if tensor is not None and (found := not_finite(tensor)):
                raise DatasetError(
                    f"The caption {file.captions[row]!r:.80} of {self.folder} is not usable: its {name} hold {found} "
                    f"(row {row} of {file.file}). Nothing was trained on it. Prepare the dataset again."
                )
        return NullPrompt(text, pooled)

    def _check(self, number: int) -> None:
        file = self.index.files[number]
        try:
            header = self._header(number)
        except (CheckpointError, OSError) as error:
            raise self._damaged(file, cause(error.__cause__ or error)) from error
        found = {key: tuple(info.shape)[:1] for key, info in header.items()}
        expected = {TEXT_STATES: (sum(file.tokens),)} | ({POOLED: (len(file.captions),)} if POOLED in found else {})
        if found != expected or len(file.tokens) != len(file.captions):
            raise self._damaged(file, f"its tensors have {found} rows, but the index states {expected}")

    def _header(self, number: int) -> dict[str, TensorInfo]:
        return read_header(self.folder / self.index.files[number].file)

    def _damaged(self, file: TextFile, why: str) -> DatasetError:
        return damaged(self.folder, file.file, why)
