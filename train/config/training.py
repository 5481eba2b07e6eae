"""The configuration of a training run, and the checks across its sections.

A *branch* is a LoRA on the frozen teacher, used at a weight. A *role* is what a network does in a training: generator,
teacher, real score, fake score or discriminator. A *recipe* is the sampling settings that an exported file stores.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from magicdistill_core.families.hunyuan_video import EMBEDDED_GUIDANCE
from magicdistill_core.recipe import Sampler

from .methods import FAKE, AnyMethod, CFGConfig, OneStepConfig, W2SConfig
from .precision import FastPrecision
from .run import CheckpointConfig, GuardConfig, LoggingConfig
from .sections import (
    Calls,
    EmaConfig,
    FileOrWord,
    FilePath,
    Numbered,
    OptimizerConfig,
    Positive,
    Section,
    Seed,
    Size,
)

# Instead of a path: the file of that kind that ships with this project.
POCKET = "pocket"

# In minutes. PyTorch takes no time that exceeds a few centuries.
_YEAR = 525600


class BranchConfig(Section):
    """Size of a low-rank branch. It adds `alpha / rank * up @ down` to every linear layer of the blocks."""

    rank: Size = Field(
        64,
        description="Rank of the two matrices. A higher rank can learn more, and takes more memory and a larger file.",
    )
    alpha: float = Field(
        64.0, gt=0, description="Scale of the branch: its output is multiplied by `alpha / rank`. Equal to rank is 1."
    )


class TeacherLora(Section):
    """A LoRA that is merged into the teacher before the training."""

    file: FilePath = Field(
        description="The LoRA's file, of any trainer whose LoRAs the node *Load few-step LoRA* reads."
    )
    weight: float = Field(1.0, ge=-4, le=4, description="Factor of the LoRA's change, as a node's `strength`.")


class ModelConfig(Section):
    """The teacher, which weights are trained, and how they are held in memory."""

    teacher: FileOrWord = Field(
        description="The teacher's weights: a model file or a diffusers folder. `pocket` is the small model that ships "
        "with this project."
    )
    teacher_loras: tuple[TeacherLora, ...] = Field(
        (),
        description="LoRAs that are merged into the teacher first, such as a style or an identity: "
        "`[{file: style.safetensors, weight: 0.8}]`. The run then distils the teacher with them; the recipe of the "
        "exported file names them.",
    )
    null_prompt: FilePath | None = Field(
        None,
        description="File with the `null_prompt.*` tensors, the text conditioning of every call without a caption; "
        "make it with `magicdistill encode-prompt`. Needed if the teacher's own file has none, otherwise it replaces "
        "that one.",
    )
    negative_prompt: FilePath | None = Field(
        None,
        description="File like `null_prompt` for the unconditional calls of guidance, which `method.name: cfg` and a "
        "`method.guidance_scale` other than 1 make; refused otherwise. Required without `data.captions`. With captions "
        "the default is the empty text: the null prompt, or the sample's own if the text encoder sees the image.",
    )
    i2v_mode: Literal["concat", "token_replace", "none"] | None = Field(
        None,
        description="How the start image enters the teacher. Set it only if neither the weights nor their file state "
        "it. With 16 input channels, `token_replace` is HunyuanVideo-I2V v2, `none` is text-to-video.",
    )
    embedded_guidance: float = Field(
        EMBEDDED_GUIDANCE,
        gt=0,
        description="Guidance scale passed to a teacher with a guidance embedding, in every role. No effect on other "
        "teachers.",
    )
    mode: Literal["full", "lora"] = Field(
        "full",
        description="`full` trains a copy of the teacher. `lora` trains a low-rank branch on one frozen teacher that "
        "all roles share; it takes less memory and exports a LoRA.",
    )
    precision: FastPrecision = Field(
        "bf16",
        description="Format of weights and computation. With `bf16` the optimizers keep fp32 copies of the trained "
        "weights; use `fp32` for numerical comparisons. `auto` is `bf16` on a GPU and on a CPU with bf16 instructions, "
        "else `fp32`.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Recompute each block during the backward pass instead of storing its activations. Less memory, "
        "more time; clips on a 13B model need it.",
    )
    keep_attention: bool = Field(
        False,
        description="With `activation_checkpointing`: store the outputs of attention instead of recomputing them. "
        "Faster, mostly for long clips; a 13B model takes 25 GB more at 129 frames of 544x960.",
    )
    compile: bool = Field(
        False,
        description="Compile the blocks of the networks with PyTorch, each kind of call once in the first round. On "
        "one H200 a forward of 13B at 33 frames of 544x960 was then 1.3 times as fast. Needs `zero.stage` 0 to 2 and "
        "a C compiler. Not together with `keep_attention` or `context_parallel`.",
    )
    base_int8: bool = Field(
        False,
        description="With `mode: lora`: hold the linear layers of the frozen network in int8, with one scale per row. "
        "About half its memory: 12.4 GB less for 13B, computed. The run logs the errors of the velocity and of its "
        "gradient, and ends if they are too large. Needs `zero.stage` 0 to 2.",
    )
    generator_branch: BranchConfig = Field(
        BranchConfig(), description="The generator's branch. Only used with `mode: lora`."
    )
    fake_branch: BranchConfig = Field(
        BranchConfig(), description="The branch of the fake and real scores. Only for methods with a fake branch."
    )


class ScheduleConfig(Section):
    """How the exported generator is sampled. The values are written into the recipe of the exported file."""

    steps: Calls = Field(
        4,
        description="Model calls that the generator needs for one video. Distillation trains for exactly this number.",
    )
    shift: float = Field(
        5.0,
        gt=0,
        le=100,
        description="Moves noise levels towards more noise: t becomes shift * t / (1 + (shift - 1) * t). It applies to "
        "the sampling steps and to the levels drawn for training; 1 changes nothing.",
    )
    sampler: Sampler = Field(
        "euler",
        description="`euler` follows the velocity to the next level. `renoise` (DMD2) predicts the clean latents and "
        "adds new noise at the next level.",
    )
    image_in_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the start image's latent in the starting noise of samples. 0.001 for HunyuanVideo-I2V, "
        "whose release starts so; 0 for other teachers. Training itself starts from pure noise.",
    )
    dropped_frames: int = Field(
        0,
        ge=0,
        le=64,
        description="First decoded frames that are left out of a video. 4 for HunyuanVideo-I2V with concat, whose "
        "release leaves them out; 0 for other teachers.",
    )


class DataConfig(Section):
    """The prepared dataset and the batch size.

    One update sees processes / context_parallel x micro_batch x accumulation samples.
    """

    dataset: FilePath = Field(description="Folder that `magicdistill prepare` wrote.")
    mixed: tuple[FilePath, ...] = Field(
        (),
        description="Folders of further datasets, which may have other sizes and lengths. Each update takes all its "
        "samples from one dataset, drawn by the seed. The first dataset is validated.",
    )
    weights: tuple[float, ...] | None = Field(
        None,
        description="With `mixed`: how often `dataset` and each of `mixed` are drawn, in this order. `null` draws "
        "every sample equally often.",
    )
    micro_batch: Size = Field(
        1, description="Samples that one process computes at a time. Raise it as far as GPU memory allows."
    )
    accumulation: Positive = Field(
        1,
        description="Micro-batches whose gradients are combined into one update. Raise it for a larger batch in the "
        "same memory.",
    )
    captions: bool = Field(
        False,
        description="Train each sample with its own caption (`magicdistill prepare --text-encoder`) instead of the "
        "null prompt. The dataset must contain captions.",
    )
    caption_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="With `captions`: share of the samples that get the empty text instead of their caption, drawn "
        "anew in every update. A teacher that will be guided needs it in `sft`; 0.1 is usual.",
    )
    held_out: int | None = Field(
        None,
        ge=0,
        description="Samples of the dataset that the training does not see, for validation. All windows of a video are "
        "held out together, so there may be up to twice as many. `null` holds out 10 %, at most 64, and none of a "
        "dataset with fewer than 20 samples. 0 trains on everything, and validation then uses clips of the training.",
    )

    def check_mixed(self) -> None:
        """Check the settings of further datasets.

        Raises:
            ValueError: if the weights do not fit the datasets, or captions are trained from several.
        """
        count = 1 + len(self.mixed)
        if self.weights is not None and (len(self.weights) != count or min(self.weights) <= 0 or not self.mixed):
            raise ValueError(
                f"data.weights is {list(self.weights)}, expected {count} positive numbers: one for data.dataset and "
                "one for each of data.mixed. Without data.mixed leave it out"
            )
        if self.mixed and self.captions:
            raise ValueError("data.captions is true, but captions are read from one dataset only: leave out data.mixed")


class ZeroConfig(Section):
    """DeepSpeed ZeRO: which state is partitioned among the processes instead of copied to each."""

    stage: Annotated[Literal[0, 1, 2, 3], Numbered] = Field(
        2,
        description="0 partitions nothing, 1 the optimizer states, 2 also the gradients, 3 also the weights. Use 3 if "
        "the weights do not fit on one GPU; it adds communication to every model call.",
    )


class ValidationConfig(Section):
    """Samples with fixed noise that the run makes as it trains: their energy score selects the best checkpoint.

    One validation costs `samples * seeds * schedule.steps` network calls for one sample each, shared by all processes.
    The start of a run is validated too.
    """

    every: int = Field(
        50,
        ge=0,
        description="Generator updates between two validations. The last update is validated too. Only validated "
        "checkpoints can be the best, so `checkpoint.every` should be the same or a multiple. 0 turns validation off, "
        "and no checkpoint is the best.",
    )
    samples: Positive = Field(
        16,
        description="Number of clips, evenly spread over those that `data.held_out` keeps. The error of the energy "
        "score falls with the square root of this number.",
    )
    seeds: Annotated[int, Field(ge=2)] = Field(
        2, description="Samples of each clip, from different noise. The energy score needs at least 2."
    )
    shown: Positive = Field(
        4, description="Number of the clips that are decoded into the contact sheet and the video, one sample of each."
    )
    seed: Seed = Field(0, description="Seed of the samples' noise. It stays the same for the complete run.")
    vae: FileOrWord = Field(
        "pocket",
        description="VAE that decodes the shown samples: a TAEHV file or a diffusers folder, the one that the dataset "
        "was made with. `pocket` is the small VAE that ships with this project.",
    )


class TrainConfig(Section):
    """The complete configuration of a training run."""

    run: FilePath = Field(description="Folder that the run writes its checkpoints, metrics, samples and report to.")
    seed: Seed = Field(0, description="Seed of every random draw: noise, noise levels, order of the data, new weights.")
    updates: Positive = Field(description="Generator updates of the complete run. A resumed run may raise it.")
    model: ModelConfig = Field(description="The teacher, which weights are trained, and how they are held in memory.")
    data: DataConfig = Field(description="The dataset and the batch size.")
    method: AnyMethod = Field(W2SConfig(), description="The training method and its settings.")
    schedule: ScheduleConfig = Field(
        ScheduleConfig(), description="How the exported generator is sampled: steps, shift and sampler."
    )
    generator_optimizer: OptimizerConfig = Field(description="Optimizer of the generator.")
    generator_ema: EmaConfig | None = Field(
        None,
        description="Moving average of the generator's weights, for validation and export. `null` uses the weights "
        "themselves.",
    )
    fake_optimizer: OptimizerConfig | None = Field(
        None,
        description="Optimizer of the fake branch. Required by the methods that train one; `null` for all others.",
    )
    zero: ZeroConfig = Field(ZeroConfig(), description="What DeepSpeed partitions among the processes.")
    context_parallel: Size = Field(
        1,
        description="Processes that share one sample (Ulysses): each computes a part of its video tokens. It must "
        "divide the number of processes and the teacher's attention heads. More than 1 trains on longer clips, or with "
        "a smaller batch, on the same GPUs.",
    )
    validation: ValidationConfig = Field(
        ValidationConfig(), description="Samples that are measured and shown while the run trains."
    )
    checkpoint: CheckpointConfig = Field(
        CheckpointConfig(), description="When the run saves its state, and which checkpoints it keeps."
    )
    guard: GuardConfig = Field(GuardConfig(), description="How the run detects a collapse, and what it does then.")
    logging: LoggingConfig = Field(LoggingConfig(), description="Additional places for metrics.")
    timeout: float = Field(
        30.0,
        gt=0,
        le=_YEAR,
        description="Minutes that a process waits for the others before it treats one as dead and stops. Raise it if "
        "single operations take longer.",
    )

    @field_validator("method", mode="before")
    @classmethod
    def _default_method(cls, value: Any) -> Any:
        return {"name": W2SConfig.model_fields["name"].default} | value if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.model.compile and self.zero.stage == 3:
            raise ValueError(
                "model.compile is set, but with zero.stage=3 DeepSpeed gathers the weights of each layer inside of the "
                "blocks, which cannot be compiled: set zero.stage=2, or model.compile=false"
            )
        if self.model.base_int8 and (self.model.mode != "lora" or self.zero.stage == 3):
            raise ValueError(
                "model.base_int8 holds the frozen network of model.mode=lora in int8 on every GPU, so it needs that "
                f"mode and zero.stage 0 to 2; found {self.model.mode} and {self.zero.stage}"
            )
        if self.model.compile and self.context_parallel > 1:
            raise ValueError(
                "model.compile and context_parallel do not work together: gradients that pass between processes inside "
                "of a compiled block come out wrong. Set model.compile=false, or context_parallel=1"
            )
        if self.model.compile and self.model.keep_attention:
            raise ValueError(
                "model.compile and model.keep_attention do not work together: inside of a compiled block the trainer "
                "cannot tell attention from the rest. Set one of them to false"
            )
        self.data.check_mixed()
        needs, has = self.method.uses_negative_prompt, self.model.negative_prompt is not None
        if self.data.caption_dropout and not self.data.captions:
            raise ValueError(
                f"data.caption_dropout is {self.data.caption_dropout:g}, but the run trains without captions: set "
                "data.captions=true, or data.caption_dropout=0"
            )
        if needs and not has and not self.data.captions:
            raise ValueError(
                f"the method {self.method.name} needs model.negative_prompt: guidance moves away from an unconditional "
                "prompt, and the null prompt alone is not enough. Name its file, train with captions "
                "(data.captions=true), or set method.guidance_scale=1 for no guidance"
            )
        if has and not needs:
            raise ValueError(
                f"the method {self.method.name} as configured does not use model.negative_prompt: remove it, or set "
                "method.guidance_scale above 1"
            )
        if isinstance(self.method, CFGConfig):
            self.method.check_scale(self.model.embedded_guidance)
        if isinstance(self.method, OneStepConfig) and (self.schedule.steps != 1 or self.model.mode != "full"):
            raise ValueError(
                "the method one_step trains all weights of a one-step generator, so it needs schedule.steps=1 and "
                f"model.mode=full; found {self.schedule.steps} and {self.model.mode}"
            )
        trains_fake = FAKE in self.method.trained
        if trains_fake and self.fake_optimizer is None:
            raise ValueError(
                f"the method {self.method.name} trains a fake branch, so it needs fake_optimizer: set fake_optimizer.lr"
            )
        if not trains_fake and self.fake_optimizer is not None:
            raise ValueError(f"the method {self.method.name} trains no fake branch: set fake_optimizer=null")
        return self
