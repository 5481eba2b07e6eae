"""The text states in a latent dataset, as its index describes them.

A *prompt* of a dataset is a caption with its text states: what the text encoder made of it. Prompts are numbered in the
order of the files. Each file holds the prompts of several captions one after another:

- `text_states` `[tokens of all prompts, text_dim]`, without padding;
- `pooled` `[prompts, pooled_dim]`, for a family with pooled text.

An encoder that reads only text encodes each caption once, and all samples with this caption name the same prompt. An
encoder that also sees the start image makes prompts for each sample: one of its caption, and one of the empty text.
"""

from pydantic import BaseModel, ConfigDict, Field

from magicdistill_core.prompt_templates import PromptTemplate, needs_image

TEXT_STATES, POOLED = "text_states", "pooled"
# Beginning of the names of the files.
TEXT_PREFIX = "text-"


class TextFile(BaseModel):
    """One file of text states."""

    model_config = ConfigDict(extra="allow", frozen=True)

    file: str
    bytes: int = Field(description="Size of the file in bytes. It reveals a truncated copy at once.")
    captions: list[str] = Field(description="The caption of each prompt, in order.")
    tokens: list[int] = Field(description="Number of tokens of each prompt, in order.")


class TextIndex(BaseModel):
    """All text states of a dataset."""

    model_config = ConfigDict(extra="allow", frozen=True)

    encoder_sha256: str = Field(description="Identity of the text encoder's files, or of the program that encoded.")
    template: PromptTemplate | None = Field(
        None,
        description="How texts, and for some models the start images, were encoded. None if another program did it.",
    )
    files: list[TextFile] = []

    @property
    def sees_image(self) -> bool:
        """Whether the text states depend on the start image."""
        return self.template is not None and needs_image(self.template)

    @property
    def captions(self) -> list[str]:
        """The caption of each prompt, by the prompt's number."""
        return [caption for file in self.files for caption in file.captions]


class SamplePrompts(BaseModel):
    """The prompts of one sample, by their numbers."""

    model_config = ConfigDict(frozen=True)

    caption: int = Field(description="The prompt of the sample's caption.")
    empty: int | None = Field(
        None, description="The prompt of the empty text with the sample's image; None if the encoder sees no image."
    )
