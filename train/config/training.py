"""The configuration of a training run: every field is typed, described and checked."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from magicdistill_core.families.hunyuan_video import EMBEDDED_GUIDANCE
from magicdistill_core.recipe import Sampler

from .methods import FAKE, AnyMethod, CFGConfig, OneStepConfig, W2SConfig
from .run import CheckpointConfig, GuardConfig, LoggingConfig
from .sections import EmaConfig, OptimizerConfig, Positive, Section

# In place of a path: the file of that kind that ships with us.
POCKET = "pocket"


class BranchConfig(Section):
    """Size of a low-rank branch; it adds `alpha / rank * up @ down` to every linear of the blocks."""

    rank: Positive = Field(64, description="Rank of the two matrices; memory and file size grow with it.")
    alpha: float = Field(64.0, gt=0, description="The branch counts `alpha / rank` times; equal to rank is once.")


class ModelConfig(Section):
    """What is trained, from what, and in which precision."""

    teacher: str = Field(description="Path of the teacher's checkpoint, or `pocket` for the model that ships with us.")
    null_prompt: Path | None = Field(
        None, description="File with `null_prompt.*` tensors, for a teacher whose own file has none."
    )
    negative_prompt: Path | None = Field(
        None,
        description="A second file like null_prompt, for what is unconditional: guidance of the real score, and cfg.",
    )
    i2v_mode: Literal["concat", "token_replace", "none"] | None = Field(
        None,
        description="How the start image enters, for a teacher whose weights leave it open and whose file does not say "
        "it: with 16 input channels, `token_replace` (HunyuanVideo-I2V v2) or `none` (text-to-video).",
    )
    embedded_guidance: float = Field(
        EMBEDDED_GUIDANCE, gt=0, description="What a teacher with a guidance embedding is given, in every role."
    )
    mode: Literal["full", "lora"] = Field(
        "full",
        description="`full` trains a copy of the teacher; `lora` a branch, and one frozen base serves all.",
    )
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Of weights and computation; with bf16 the optimizers keep fp32 copies of what is trained."
    )
    activation_checkpointing: bool = Field(False, description="Recompute blocks in backward: less memory, more time.")
    keep_attention: bool = Field(
        False,
        description="With activation_checkpointing: keep what attention gave instead of recomputing it. Faster, the "
        "more the longer the clips; on 13B 25 GB more at 129 frames of 544x960.",
    )
    generator_branch: BranchConfig = Field(BranchConfig(), description="Mode `lora` only.")
    fake_branch: BranchConfig = Field(BranchConfig(), description="The branch of the fake and real scores.")


class ScheduleConfig(Section):
    """How the generator will be sampled; written into the recipe of what is exported."""

    steps: Positive = Field(4, description="Calls of the generator for a video, which is what it is trained for.")
    shift: float = Field(
        5.0,
        gt=0,
        description="How far noise levels lie towards noise: t becomes shift * t / (1 + (shift - 1) * t), in the steps "
        "and in the levels drawn for training; 1 leaves them as they are.",
    )
    sampler: Sampler = Field("euler", description="`euler`, or `renoise` (DMD2's).")


class DataConfig(Section):
    """The prepared dataset and how much of it one update sees."""

    dataset: Path = Field(description="Folder that `magicdistill prepare` wrote.")
    micro_batch: Positive = Field(1, description="Samples in one forward on one process.")
    accumulation: Positive = Field(1, description="Micro-batches in one optimizer step, for either engine.")


class ZeroConfig(Section):
    """DeepSpeed's sharding."""

    stage: Literal[0, 1, 2, 3] = Field(
        2,
        description="What is cut among the processes: 0 nothing, 1 optimizer states, 2 gradients too, 3 weights too, "
        "which costs communication at every call.",
    )


class ValidationConfig(Section):
    """Samples with fixed seeds, to be looked at."""

    every: int = Field(50, ge=0, description="Generator updates between samples; 0 never.")
    samples: Positive = Field(4, description="Start images, evenly spread over the dataset.")
    seed: int = Field(0, description="Of the samples' noise: the same at every step of the run.")
    vae: str = Field("pocket", description="VAE that decodes the samples: a path, or `pocket`.")


class TrainConfig(Section):
    """A whole training run."""

    run: Path = Field(description="Folder of the run: checkpoints, metrics, samples.")
    seed: int = Field(0, description="Of every draw of the run: noise, levels, order of the data, new weights.")
    updates: Positive = Field(description="Generator updates in all.")
    model: ModelConfig = Field(description="What is trained, from what, and in which precision.")
    data: DataConfig = Field(description="The dataset, and how much of it one update sees.")
    method: AnyMethod = Field(W2SConfig(), description="The method, chosen by `method.name`, and its settings.")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="How the generator will be sampled.")
    generator_optimizer: OptimizerConfig = Field(description="For the generator, which every method trains.")
    generator_ema: EmaConfig | None = Field(
        None, description="A moving average of the generator, validated and exported in its place; none by default."
    )
    fake_optimizer: OptimizerConfig | None = Field(None, description="For the methods that train a fake branch.")
    zero: ZeroConfig = Field(ZeroConfig(), description="What DeepSpeed cuts among the processes.")
    validation: ValidationConfig = Field(ValidationConfig(), description="Samples to look at while the run goes on.")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="When state is saved, and what is kept.")
    guard: GuardConfig = Field(GuardConfig(), description="What counts as collapse, and what is done then.")
    logging: LoggingConfig = Field(LoggingConfig(), description="Where metrics go besides the run's folder.")
    timeout: float = Field(
        30.0, gt=0, description="Minutes that a process waits for the others before it takes one of them for dead."
    )

    @field_validator("method", mode="before")
    @classmethod
    def _default_method(cls, value: Any) -> Any:
        return {"name": W2SConfig.model_fields["name"].default} | value if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        needs, has = self.method.uses_negative_prompt, self.model.negative_prompt is not None
        if needs and not has:
            raise ValueError(
                f"the method {self.method.name} needs model.negative_prompt: guidance moves away from an unconditional "
                "prompt, and with the null prompt alone there is nothing to move away from (guidance_scale 1 is none)"
            )
        if has and not needs:
            raise ValueError(
                f"the method {self.method.name} as configured has no use for model.negative_prompt: remove it, or set "
                "method.guidance_scale"
            )
        if isinstance(self.method, CFGConfig):
            self.method.check_scale(self.model.embedded_guidance)
        if isinstance(self.method, OneStepConfig) and (self.schedule.steps != 1 or self.model.mode != "full"):
            raise ValueError(
                "the method one_step trains a whole generator of one step, so it needs schedule.steps=1 and "
                f"model.mode=full; found {self.schedule.steps} and {self.model.mode}"
            )
        trains_fake = FAKE in self.method.trained
        if trains_fake and self.fake_optimizer is None:
            raise ValueError(f"the method {self.method.name} trains a fake branch, so it needs fake_optimizer.lr")
        if not trains_fake and self.fake_optimizer is not None:
            raise ValueError(f"the method {self.method.name} trains no fake branch, so fake_optimizer must go")
        return self
