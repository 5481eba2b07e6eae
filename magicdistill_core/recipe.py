"""The recipe: the sampling settings and the origin of a model file, stored in its safetensors metadata.

The trainer writes the recipe, and the nodes and the trainer's sampler read it. With it, nobody has to guess the number
of steps, the shift, the sampler or the image-to-video mode from a file name. MD: MagicDistillation (arXiv 2503.13319).
"""

import json
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import CheckpointError
from .families import family_named
from .geometry import check_geometry
from .prompt_templates import PromptTemplate

METADATA_KEY = "magicdistill.recipe"

Sampler = Literal["euler", "renoise"]
Kind = Literal["teacher", "generator", "teacher_lora", "generator_lora", "fake_lora"]

# Fields that are stored only if they are not 0 or empty, because earlier versions do not know them.
_STORED_UNLESS_EMPTY = ("image_in_noise", "dropped_frames", "teacher_loras")


class MergedLora(BaseModel):
    """A LoRA that was merged into the teacher before a training."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str = Field(description="Name of its file.")
    sha256: str = Field(description="sha256 of its file.")
    weight: float = Field(description="Factor of its change.")


class Recipe(BaseModel):
    """How a model file was trained, and how to sample from it. Each field has its description.

    `sampler` names one of the samplers in `flow`: `euler` (deterministic steps along the flow) or `renoise` (predict
    the clean video, then add fresh noise).
    """

    # Fields of newer versions are kept, so that a file that is read and written again still has them.
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    format_version: Literal[1] = 1
    kind: Kind = Field(description="Role of the weights: a many-step teacher, a few-step generator, or a LoRA.")
    family: str = Field("hunyuan_video", description="Architecture of the transformer.")
    i2v_mode: str = Field("concat", description="How the start image enters: concat, token_replace or none.")
    steps: int = Field(ge=1, le=1000, description="Number of sampling steps that the weights are made for.")
    shift: float = Field(gt=0, le=1000, description="Timestep shift of the schedule.")
    sampler: Sampler = "euler"
    guidance_scale: float = Field(1.0, ge=1, le=1000, description="Classifier-free guidance at sampling; 1 means none.")
    embedded_guidance: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Input of a network's guidance embedding, if it has one; not classifier-free guidance.",
    )
    prompt_template: PromptTemplate | None = Field(
        None, description="How the text, and for some models the start image, were encoded for the training."
    )
    image_in_noise: float = Field(
        0.0, ge=0, lt=1, description="Share of the start image's latent, in every frame, in the starting noise."
    )
    dropped_frames: int = Field(0, ge=0, le=64, description="First decoded frames that are no part of the video.")
    width: int = Field(gt=0, le=8192, description="Width of the training videos in pixels, a multiple of 16.")
    height: int = Field(gt=0, le=8192, description="Height of the training videos in pixels, a multiple of 16.")
    frames: int = Field(gt=0, le=8193, description="Frames of the training videos, 4n + 1.")
    fps: float = Field(gt=0, le=1000, description="Frame rate of the training videos.")
    method: str | None = Field(None, description="Training method, e.g. w2s.")
    training_step: int | None = Field(None, ge=0, description="Generator updates made.")
    a_weak: float | None = Field(None, description="Branch weight of the real score (MD Eq. 6).")
    a_strong: float | None = Field(None, description="Branch weight of the fake score.")
    teacher_hash: str | None = Field(None, description="sha256 of the teacher's file.")
    teacher_loras: tuple[MergedLora, ...] = Field((), description="LoRAs that were merged into the teacher first.")
    base_hash: str | None = Field(None, description="For a LoRA: sha256 of its base's file or folder.")
    base_kind: Literal["folder"] | None = Field(
        None, description="For a LoRA: `folder` if base_hash covers the files of a diffusers folder; None for one file."
    )
    lora_rank: int | None = Field(None, ge=1, description="For a LoRA: rank before q, k and v are fused.")
    lora_alpha: float | None = Field(None, gt=0, description="For a LoRA: alpha before q, k and v are fused.")
    lora_error: float | None = Field(
        None, ge=0, description="For an extracted LoRA: relative error of the change of the weights."
    )
    lora_velocity_error: float | None = Field(
        None, ge=0, description="For an extracted LoRA: relative error of the change of the velocities."
    )

    @model_validator(mode="after")
    def _family_is_known(self) -> Self:
        if family_named(self.family, self.i2v_mode) is None:
            raise ValueError(f"there is no family {self.family!r} with i2v_mode {self.i2v_mode!r}")
        check_geometry(self.frames, self.height, self.width)
        if self.dropped_frames >= self.frames:
            raise ValueError(f"dropped_frames is {self.dropped_frames}, which leaves none of {self.frames} frames")
        return self

    @property
    def unknown_fields(self) -> tuple[str, ...]:
        """The names of fields that this version does not know, in alphabetical order. A newer version wrote them."""
        return tuple(sorted(self.model_extra or ()))

    def to_metadata(self) -> dict[str, str]:
        """Return the safetensors metadata that stores this recipe as JSON, and the usual entry `format`."""
        values = self.model_dump(mode="json")
        left_out = {name for name in _STORED_UNLESS_EMPTY if not values[name]}
        left_out |= {name for name, value in values.items() if value is None and name not in self.unknown_fields}
        stored = {name: value for name, value in values.items() if name not in left_out}
        return {METADATA_KEY: json.dumps(stored), "format": "pt"}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None, source: str = "the file") -> "Recipe | None":
        """Read the recipe from safetensors metadata; None if there is none (a file from another tool).

        Args:
            metadata: the file's text entries; None for a file without metadata.
            source: the file's name for error messages.

        Raises:
            CheckpointError: if the recipe has a newer format, lacks a field, or has values that cannot be sampled with.
        """
        text = (metadata or {}).get(METADATA_KEY)
        if text is None:
            return None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            found = error.errors(include_url=False)
            if any(e["loc"] == ("format_version",) and isinstance(e["input"], int) and e["input"] > 1 for e in found):
                raise CheckpointError(
                    f"The recipe in {source} cannot be understood: a newer version of MagicDistillation wrote it "
                    f"(format_version is newer than 1). Update this installation."
                ) from error
            fields = "; ".join(_described(e["loc"], e["msg"], e["input"]) for e in found)
            raise CheckpointError(
                f"The recipe in {source} cannot be understood ({fields}). The file was "
                f"edited or damaged. Export it again with MagicDistillation."
            ) from error


def _described(place: tuple[int | str, ...], message: str, found: object) -> str:
    """Return the field, what was expected and what was found of one of pydantic's errors."""
    name = ".".join(map(str, place)) or "recipe"
    return f"{name}: {message}" + ("" if isinstance(found, dict) or not place else f", found {found!r:.60}")
