"""The settings of every training method, and what each method needs. The field `name` selects the class.

The methods themselves are in `train.methods`. They import DeepSpeed, which reading a configuration does not need.

A *branch* is a LoRA on the frozen teacher, used at a weight. A *round* is one generator update with the updates of the
other networks before it. A *recipe* is the settings that an exported file stores. MD: MagicDistillation (arXiv
2503.13319), M141: Magic 1-For-1 (arXiv 2502.07701).
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from magicdistill_core.branch import A_STRONG, A_WEAK
from magicdistill_core.checkpoint import Checkpoint
from magicdistill_core.errors import ConfigError
from magicdistill_core.families.hunyuan_video import CONCAT, TEXT_ONLY, network_shape
from magicdistill_core.geometry import LATENT_CHANNELS
from magicdistill_core.objectives.supervision import Distance
from magicdistill_core.widening import add_guidance_embedding, widen_to_image

from .sections import Calls, FilePath, Numbered, OptimizerConfig, Section

# The names of the trained networks. Each has its own engine and optimizer.
GENERATOR, FAKE, DISCRIMINATOR = "generator", "fake", "discriminator"

Mode = Literal["full", "lora"]

Weight = Annotated[float, Field(ge=0)]
Zero = Annotated[Literal[0], Numbered]

# The description of a field that every method has.
NAME = "The method. It decides which other settings there are."


def _needs_full(mode: Mode, what: str, trained: str) -> None:
    if mode != "full":
        raise ConfigError(f"{what} trains {trained}, which a low-rank branch does not change. Set model.mode=full.")


class MethodConfig(Section):
    """The settings that all methods share."""

    # Whether the method calls the frozen teacher (`Networks.teacher`).
    uses_teacher: ClassVar[bool] = False

    name: str = Field(description=NAME)

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the networks that are trained. Every method trains a generator, which the run exports."""
        return (GENERATOR,)

    @property
    def uses_negative_prompt(self) -> bool:
        """Whether the method makes unconditional calls, with `model.negative_prompt`."""
        return False

    @property
    def warmup_rounds(self) -> int:
        """Number of rounds before the first update of the generator, in which only the fake branch learns."""
        return 0

    @property
    def start_file(self) -> Path | None:
        """File of a few-step generator, from which the generator starts and learns; None to start from the teacher."""
        return None

    def recipe_fields(self) -> dict[str, Any]:
        """Return the fields of the exported files' `Recipe` that depend on the method, not on schedule and data."""
        return {"method": self.name}

    def prepared(self, teacher: Checkpoint, mode: Mode) -> Checkpoint:
        """Return the teacher with the inputs that the method needs; by default the teacher itself.

        Args:
            teacher: the teacher as loaded from its file.
            mode: `full` or `lora`, the setting `model.mode`.

        Raises:
            CheckpointError: if this teacher cannot have these inputs.
            ConfigError: if the inputs cannot be trained in this mode.
        """
        return teacher


class SupervisionConfig(Section):
    """Ground-truth supervision (MD Eq. 7): the generator also learns the clips of the dataset directly.

    Single frames become better, but motion decreases unless the clips move a lot.
    """

    weight: float = Field(0.25, gt=0, description="Weight of the supervision loss; the matching loss has weight 1.")
    distance: Distance = Field(
        "huber", description="Distance to the clip: `huber` is sqrt(d^2 + xi^2) - xi, `mse` is d^2."
    )
    xi: float = Field(
        1e-3,
        gt=0,
        description="Width of the quadratic part of `huber`, in units of the latents (MD Eq. 7). No effect with `mse`.",
    )


class DiscriminatorConfig(Section):
    """The tailored discriminator (MD Sec. 3.4), which adds an adversarial loss to distribution matching.

    It reads the features of the teacher's double blocks, with a trained copy of the teacher's first single block.
    """

    optimizer: OptimizerConfig = Field(description="Optimizer of the discriminator.")
    weight: float = Field(
        0.05, gt=0, description="Weight of the generator's adversarial loss; the matching loss has weight 1."
    )
    updates: Calls = Field(1, description="Discriminator updates before each generator update.")
    warmup: int = Field(
        0,
        ge=0,
        description="Number of first rounds in which only the discriminator learns and the generator ignores it.",
    )
    r1: float = Field(
        100.0,
        ge=0,
        description="Weight of the approximate R1 penalty (D(z_s) - D(z_s + r1_noise * n))^2, which smooths the "
        "discriminator near the noised data z_s. 0 turns it off.",
    )
    r1_noise: float = Field(
        0.1,
        gt=0,
        description="Standard deviation of the noise n in the R1 penalty, in units of the latents. It is added to what "
        "the discriminator reads, so it has this size at every noise level.",
    )


class MatchingConfig(MethodConfig):
    """Distribution matching: the generator moves from the fake score towards the real score.

    Both scores come from one frozen teacher with one low-rank branch (a LoRA), at two weights of the branch. The branch
    learns the distribution of the generator's samples. At the larger weight, `a_strong`, it is the fake score. At the
    smaller weight, `a_weak`, it is the real score, which stays close to the teacher.
    """

    a_weak: float = Field(
        A_WEAK,
        ge=0,
        description="Weight of the branch in the real score (MD Eq. 6). 0 is plain DMD; values above 0.25 cost motion.",
    )
    a_strong: float = Field(
        A_STRONG, gt=0, description="Weight of the branch in the fake score (MD Eq. 5), at which the branch is trained."
    )
    fake_updates: Calls = Field(
        5,
        description="Updates of the fake branch before each generator update. Raise it if the fake score does not "
        "follow the generator (`fake/loss` rises).",
    )
    fake_warmup: int = Field(
        0,
        ge=0,
        description="Rounds of the fake branch alone before the first update of the generator: `fake_updates` updates "
        "of the branch each. Until the branch has learned something, the difference of the scores is below the "
        "rounding of bf16, and Adam makes full steps with it. Look at `signal/agreement` in the log.",
    )
    normalize: bool = Field(
        True,
        description="Divide each sample's matching gradient by the mean distance between the sample and the real "
        "score's clean estimate (DMD2). `false` is the unnormalised gradient of the MagicDistillation paper.",
    )
    fake_loss_scale: float = Field(
        1.0,
        gt=0,
        description="Factor on the fake branch's loss, against gradients below Adam's `eps`; the paper uses 1e4. A "
        "smaller `fake_optimizer.eps` does the same. Gradient clipping sees the unscaled norm.",
    )
    guidance_scale: float = Field(
        1.0,
        ge=1,
        description="Scale w of classifier-free guidance in the real score: v(negative) + w * (v(prompt) - "
        "v(negative)). 1 is no guidance; a larger w needs `model.negative_prompt` or `data.captions`. Trainers that "
        "write v(prompt) + s * (v(prompt) - v(negative)) use s = w - 1.",
    )
    supervision: SupervisionConfig | None = Field(
        None, description="Ground-truth supervision in addition to matching. `null` is none."
    )
    discriminator: DiscriminatorConfig | None = Field(
        None, description="A discriminator in addition to matching. `null` is none."
    )

    @property
    def trained(self) -> tuple[str, ...]:
        """The generator, the fake branch, and the discriminator if there is one."""
        return (GENERATOR, FAKE) if self.discriminator is None else (GENERATOR, FAKE, DISCRIMINATOR)

    @property
    def uses_negative_prompt(self) -> bool:
        """Whether the real score is guided, which needs the negative prompt."""
        return self.guidance_scale != 1

    @property
    def warmup_rounds(self) -> int:
        """The setting `fake_warmup`."""
        return self.fake_warmup

    def recipe_fields(self) -> dict[str, Any]:
        """Return the method's name and the weights of the branch."""
        return super().recipe_fields() | {"a_weak": self.a_weak, "a_strong": self.a_strong}


class W2SConfig(MatchingConfig):
    """Weak-to-strong distribution matching, the method of MagicDistillation."""

    name: Literal["w2s"] = Field("w2s", description=NAME)


class OneStepConfig(MatchingConfig):
    """One-step distillation (MD Sec. 3.4): a few-step generator is the start, and its samples are targets.

    It needs `schedule.steps: 1` and `model.mode: full`. Both weights change in a straight line over the run.
    """

    name: Literal["one_step"] = Field("one_step", description=NAME)
    few_step_generator: FilePath = Field(
        description="Exported file of a generator with two or more steps. The one-step generator starts from its "
        "weights and learns its samples."
    )
    pair_weight: tuple[Weight, Weight] = Field(
        (1.0, 0.25),
        description="Weight of the squared distance to the few-step generator's sample from the same noise: at the "
        "first and at the last update.",
    )
    matching_weight: tuple[Weight, Weight] = Field(
        (0.25, 1.0), description="Weight of the matching loss: at the first and at the last update."
    )

    @property
    def start_file(self) -> Path:
        """File of the few-step generator."""
        return self.few_step_generator


class DMDConfig(MatchingConfig):
    """Distribution matching distillation (DMD), a baseline: the real score is the teacher without the branch."""

    name: Literal["dmd"] = Field("dmd", description=NAME)
    a_weak: Zero = Field(0, description="Always 0: the real score is the teacher without the branch.")
    discriminator: None = Field(None, description="Always `null`: use `dmd2` for a discriminator.")


class DMD2Config(MatchingConfig):
    """DMD2, a baseline: `dmd` with a discriminator."""

    name: Literal["dmd2"] = Field("dmd2", description=NAME)
    a_weak: Zero = Field(0, description="Always 0: the real score is the teacher without the branch.")
    discriminator: DiscriminatorConfig = Field(
        description="The discriminator. At least its `optimizer.lr` must be set."
    )


class LCMConfig(MethodConfig):
    """Latent consistency distillation by FastVideo's recipe, a baseline (MD App. B).

    The teacher makes one step of its long schedule; the generator learns to jump to the clean latents from there.
    """

    uses_teacher = True

    name: Literal["lcm"] = Field("lcm", description=NAME)
    ode_steps: Calls = Field(28, description="Steps of the teacher's schedule. Each sample uses one random step of it.")
    huber_width: float = Field(
        1e-3, gt=0, description="Width c of the Huber distance sqrt(d^2 + c^2) - c, in units of the latents."
    )
    target: Literal["teacher", "student"] = Field(
        "teacher",
        description="Which network makes the target, the clean latents after the teacher's step: `teacher` as in the "
        "paper, or `student`, the generator itself without gradient and without averaging, as in FastVideo. `student` "
        "gets further, but needs a smaller learning rate.",
    )


class SFTConfig(MethodConfig):
    """Fine-tuning of a teacher on real videos by flow matching. The run exports a teacher."""

    name: Literal["sft"] = Field("sft", description=NAME)
    widen: bool = Field(
        False,
        description="Turn a text-to-video teacher into an image-to-video one first: its patch embedding is widened "
        "for the start image (M141). Needs `model.mode: full`.",
    )
    level_mean: float = Field(
        0.0,
        description="Mean of the logit of the noise level, before `schedule.shift`. 0 centres the levels at 0.5; a "
        "higher mean trains on more noise.",
    )
    level_std: float = Field(
        1.0,
        gt=0,
        description="Standard deviation of the logit of the noise level. A larger one trains more on both ends.",
    )
    uniform_levels: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the samples whose noise level is uniform instead of logit-normal, before "
        "`schedule.shift`. Logit-normal levels are rarely near 0 or 1; 0.5 also trains both ends.",
    )
    loss_weight: Literal["velocity", "x0"] = Field(
        "velocity",
        description="What the loss measures: `velocity` is the squared error of the velocity v. `x0` is the squared "
        "error of the clean estimate, sigma^2 times the former, as Magic 1-For-1 trains its teacher; levels with "
        "little noise then count less.",
    )
    channel_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None,
        min_length=LATENT_CHANNELS,
        max_length=LATENT_CHANNELS,
        description="Weight of each latent channel in the loss, divided by the mean of all weights. The best velocity "
        "is the same for all weights, but a small network spends its capacity where the weights are high. `null` "
        "weighs all channels equally.",
    )
    reference_noise: tuple[float, Weight] | None = Field(
        None,
        description="Noise on the start images: mean and standard deviation of the logarithm of its strength. With it "
        "the teacher relies less on the start image and moves more; Magic 1-For-1 uses [-3, 0.5]. `null` is no noise.",
    )

    def recipe_fields(self) -> dict[str, Any]:
        """Return the method's name and the kind: the exported file is a many-step teacher."""
        return super().recipe_fields() | {"kind": "teacher"}

    def prepared(self, teacher: Checkpoint, mode: Mode) -> Checkpoint:
        """Return the teacher, as a concat image-to-video network if `widen` is set.

        Args:
            teacher: the teacher as loaded from its file; with `widen` a text-to-video network.
            mode: `full` or `lora`, the setting `model.mode`.

        Raises:
            CheckpointError: if `widen` is set and the teacher is not a text-to-video network.
            ConfigError: if `widen` is set in mode `lora`.
        """
        if not self.widen:
            return teacher
        _needs_full(mode, "Widening", "the patch embedding")
        state = widen_to_image(teacher.state, teacher.source)
        teacher.family(asked=TEXT_ONLY.i2v_mode)  # raises if its file states another mode
        return replace(teacher, state=state, shape=network_shape(state), recipe=None, i2v_mode=CONCAT.i2v_mode)


class CFGConfig(MethodConfig):
    """Distillation of classifier-free guidance: the guidance scale becomes an input of the network (M141 Eq. 6 to 9).

    A scale of 1 is no guidance; the paper's w is the scale minus 1. The run exports a teacher.
    """

    uses_teacher = True

    name: Literal["cfg"] = Field("cfg", description=NAME)
    scale_min: float = Field(1.0, ge=1, description="Smallest guidance scale that is trained. 1 is no guidance.")
    scale_max: float = Field(
        8.0, gt=1, description="Largest guidance scale that is trained. `model.embedded_guidance` must be in the range."
    )
    weight: float = Field(
        1.0,
        gt=0,
        description="Weight of the guidance loss (lambda of M141 Eq. 8); flow matching without guidance has weight 1.",
    )

    @property
    def uses_negative_prompt(self) -> bool:
        """Always True: the guided teacher is called with both prompts."""
        return True

    def recipe_fields(self) -> dict[str, Any]:
        """Return the method's name and the kind: the exported file is a many-step teacher."""
        return super().recipe_fields() | {"kind": "teacher"}

    def prepared(self, teacher: Checkpoint, mode: Mode) -> Checkpoint:
        """Return the teacher with a guidance embedding. A new embedding starts at zero and does not change the output.

        Args:
            teacher: the teacher as loaded from its file.
            mode: `full` or `lora`, the setting `model.mode`.

        Raises:
            CheckpointError: if the teacher cannot have a guidance embedding.
            ConfigError: if a new embedding would be needed in mode `lora`.
        """
        if teacher.shape.guidance_embed:
            return teacher
        _needs_full(mode, f"Distilling guidance into {teacher.source}", "its new guidance embedding")
        state = add_guidance_embedding(teacher.state, teacher.source)
        return replace(teacher, state=state, shape=network_shape(state))

    def check_scale(self, scale: float) -> None:
        """Refuse an untrained scale.

        Args:
            scale: `model.embedded_guidance`, the scale at which the exported file is sampled.

        Raises:
            ValueError: if the scale is outside the range, or the range is empty.
        """
        if not self.scale_min <= scale <= self.scale_max or self.scale_min == self.scale_max:
            raise ValueError(
                f"model.embedded_guidance must be between method.scale_min and method.scale_max, and these two must "
                f"differ; found {scale:g}, {self.scale_min:g} and {self.scale_max:g}"
            )


AnyMethod = Annotated[
    W2SConfig | DMDConfig | DMD2Config | OneStepConfig | LCMConfig | CFGConfig | SFTConfig, Field(discriminator="name")
]
