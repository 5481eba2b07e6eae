"""The settings of every training method, and what each method needs: a union that the field `name` tells apart.

Apart from the methods themselves, so that a configuration is read without DeepSpeed.
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

from .sections import OptimizerConfig, Positive, Section

# The networks that are trained; each has an engine and an optimizer of its own.
GENERATOR, FAKE, DISCRIMINATOR = "generator", "fake", "discriminator"

Mode = Literal["full", "lora"]

# Of a field that every method has.
NAME = "Which method this is; it decides the other fields."


def _needs_full(mode: Mode, what: str, trained: str) -> None:
    if mode != "full":
        raise ConfigError(f"{what} trains {trained}, which a low-rank branch does not reach. Set model.mode=full.")


class MethodConfig(Section):
    """What all methods share."""

    # Whether the frozen teacher must be at hand besides (`Networks.teacher`).
    uses_teacher: ClassVar[bool] = False

    name: str = Field(description=NAME)

    @property
    def trained(self) -> tuple[str, ...]:
        """Who is trained. Every method trains a generator: that is what the run exports."""
        return (GENERATOR,)

    @property
    def uses_negative_prompt(self) -> bool:
        """Whether `model.negative_prompt` must be given."""
        return False

    @property
    def start_file(self) -> Path | None:
        """A few-step generator that the generator starts from in place of the teacher, and that makes samples."""
        return None

    def recipe_fields(self) -> dict[str, Any]:
        """What the recipe of the exported files says beyond schedule and data (fields of `Recipe`)."""
        return {"method": self.name}

    def prepared(self, teacher: Checkpoint, mode: Mode) -> Checkpoint:
        """The teacher with the inputs that the method needs it to have.

        Raises:
            CheckpointError: if this teacher cannot have them.
            ConfigError: if they cannot be trained in this mode.
        """
        return teacher


class SupervisionConfig(Section):
    """Ground-truth supervision (MD Eq. 7): better single frames, less motion unless the data move a lot."""

    weight: float = Field(0.25, gt=0, description="Weight beside the matching loss.")
    distance: Distance = Field("huber", description="`huber`, sqrt(d^2 + xi^2) - xi, or `mse`.")
    xi: float = Field(1e-3, gt=0, description="The very small amount of MD Eq. 7; of `huber` alone.")


class DiscriminatorConfig(Section):
    """The tailored discriminator (MD 3.4): a trained copy of the teacher's first single block on its double blocks."""

    optimizer: OptimizerConfig = Field(description="Of its own, beside the generator's and the fake branch's.")
    weight: float = Field(
        0.05, gt=0, description="Weight of the adversarial loss beside the generator's matching loss."
    )
    updates: Positive = Field(1, description="Updates of the discriminator before each of the generator.")
    warmup: int = Field(0, ge=0, description="First rounds in which it learns without teaching the generator.")
    r1: float = Field(
        100.0, ge=0, description="Weight of (D(z) - D(z + r1_noise * n))^2, the approximate R1; 0 is none."
    )
    r1_noise: float = Field(0.1, gt=0, description="How far the approximate R1 looks from the data.")


class MatchingConfig(MethodConfig):
    """What the distribution-matching methods share: a real and a fake score, from one frozen teacher and one branch."""

    a_weak: float = Field(A_WEAK, ge=0, description="Branch weight of the real score (MD Eq. 6); 0 is vanilla DMD.")
    a_strong: float = Field(A_STRONG, gt=0, description="Branch weight of the fake score (MD Eq. 5).")
    fake_updates: Positive = Field(5, description="Updates of the fake branch before each of the generator.")
    normalize: bool = Field(True, description="DMD2's normalisation; false is the papers' own form.")
    fake_loss_scale: float = Field(1.0, gt=0, description="MD uses 1e4; clipping sees the unscaled gradient.")
    guidance_scale: float = Field(
        1.0,
        ge=1,
        description="w of the real score v(negative) + w * (v(prompt) - v(negative)); 1 is none. What others write as "
        "v(prompt) + s * (v(prompt) - v(negative)) has s = w - 1.",
    )
    supervision: SupervisionConfig | None = Field(
        None, description="Ground-truth supervision next to matching; none by default."
    )
    discriminator: DiscriminatorConfig | None = Field(
        None, description="An adversarial loss next to matching; none by default."
    )

    @property
    def trained(self) -> tuple[str, ...]:
        """Generator and fake branch; a discriminator if configured."""
        return (GENERATOR, FAKE) if self.discriminator is None else (GENERATOR, FAKE, DISCRIMINATOR)

    @property
    def uses_negative_prompt(self) -> bool:
        """For guidance."""
        return self.guidance_scale != 1

    def recipe_fields(self) -> dict[str, Any]:
        """With the branch weights."""
        return super().recipe_fields() | {"a_weak": self.a_weak, "a_strong": self.a_strong}


class W2SConfig(MatchingConfig):
    """Weak-to-strong distribution matching (MagicDistillation)."""

    name: Literal["w2s"] = Field("w2s", description=NAME)


class OneStepConfig(MatchingConfig):
    """One-step distillation with the help of a few-step generator (MD 3.4); needs `schedule.steps` 1."""

    name: Literal["one_step"] = Field("one_step", description=NAME)
    few_step_generator: Path = Field(
        description="File of a generator of several steps: it makes the pairs, and is where the one-step one starts."
    )
    pair_weight: tuple[float, float] = Field(
        (1.0, 0.25), description="Weight of the distance to the pairs, in the first and in the last update."
    )
    matching_weight: tuple[float, float] = Field(
        (0.25, 1.0), description="Weight of the matching loss, in the first and in the last update."
    )

    @property
    def start_file(self) -> Path:
        """The generator of several steps."""
        return self.few_step_generator


class DMDConfig(MatchingConfig):
    """Distribution matching distillation: the real score is the teacher itself."""

    name: Literal["dmd"] = Field("dmd", description=NAME)
    a_weak: Literal[0] = Field(0, description="Always 0: the real score is the teacher itself.")
    discriminator: None = Field(None, description="None; dmd2 has one.")


class DMD2Config(MatchingConfig):
    """DMD with a discriminator."""

    name: Literal["dmd2"] = Field("dmd2", description=NAME)
    a_weak: Literal[0] = Field(0, description="Always 0: the real score is the teacher itself.")
    discriminator: DiscriminatorConfig = Field(description="The adversarial loss next to matching.")


class LCMConfig(MethodConfig):
    """Latent consistency distillation by FastVideo's recipe, a baseline of MagicDistillation (MD App. B)."""

    uses_teacher = True

    name: Literal["lcm"] = Field("lcm", description=NAME)
    ode_steps: Positive = Field(28, description="Steps of the teacher's schedule, of which one is taken.")
    huber_width: float = Field(1e-3, gt=0, description="c of sqrt(d^2 + c^2) - c.")
    target: Literal["teacher", "student"] = Field(
        "teacher",
        description="Whose clean estimate is believed after the teacher's step: `teacher`, as the paper has it, or the "
        "`student` itself without gradient and averaging, as FastVideo has it.",
    )


class SFTConfig(MethodConfig):
    """Fine-tuning of a teacher on real videos by flow matching; what it exports is a teacher."""

    name: Literal["sft"] = Field("sft", description=NAME)
    widen: bool = Field(
        False,
        description="The teacher is a text-to-video network: widen its patch embedding to a start image first (M141).",
    )
    level_mean: float = Field(0.0, description="Mean of the noise levels' logits, before `schedule.shift`.")
    level_std: float = Field(1.0, gt=0, description="Standard deviation of the noise levels' logits.")
    uniform_levels: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the samples whose noise level is uniform instead of logit-normal, before "
        "`schedule.shift`. A logit-normal level is rarely near 0 or 1; a share of 0.5 trains both ends too.",
    )
    channel_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None,
        min_length=LATENT_CHANNELS,
        max_length=LATENT_CHANNELS,
        description="Weight of each latent channel in the loss; the weights are divided by their mean. The best "
        "velocity is the same for all weights, but a small network spends its capacity where the weight is. None "
        "weighs all channels alike.",
    )
    reference_noise: tuple[float, Annotated[float, Field(ge=0)]] | None = Field(
        None,
        description="Mean and standard deviation of the logarithm of the noise on start images, which keeps a teacher "
        "from clinging to them; Magic 1-For-1 used [-3, 0.5]. None is no noise.",
    )

    def recipe_fields(self) -> dict[str, Any]:
        """A many-step teacher."""
        return super().recipe_fields() | {"kind": "teacher"}

    def prepared(self, teacher: Checkpoint, mode: Mode) -> Checkpoint:
        """Widened if configured, which makes a concat image-to-video network of it."""
        if not self.widen:
            return teacher
        _needs_full(mode, "Widening", "the patch embedding")
        state = widen_to_image(teacher.state, teacher.source)
        teacher.family(asked=TEXT_ONLY.i2v_mode)  # refuses one that says that it is something else
        return replace(teacher, state=state, shape=network_shape(state), recipe=None, i2v_mode=CONCAT.i2v_mode)


class CFGConfig(MethodConfig):
    """Distillation of classifier-free guidance into a network that takes the scale as an input (M141 Eq. 6 to 9).

    Scales count from 1, which means none: the paper's w is one less.
    """

    uses_teacher = True

    name: Literal["cfg"] = Field("cfg", description=NAME)
    scale_min: float = Field(1.0, ge=1, description="Smallest guidance scale that is learned.")
    scale_max: float = Field(8.0, gt=1, description="Largest guidance scale that is learned.")
    weight: float = Field(1.0, gt=0, description="lambda of M141 Eq. 8, beside flow matching without guidance.")

    @property
    def uses_negative_prompt(self) -> bool:
        """The guided teacher is asked with both."""
        return True

    def recipe_fields(self) -> dict[str, Any]:
        """A many-step teacher."""
        return super().recipe_fields() | {"kind": "teacher"}

    def prepared(self, teacher: Checkpoint, mode: Mode) -> Checkpoint:
        """With a guidance embedding, which changes nothing at first."""
        if teacher.shape.guidance_embed:
            return teacher
        _needs_full(mode, f"Distilling guidance into {teacher.source}", "its new guidance embedding")
        state = add_guidance_embedding(teacher.state, teacher.source)
        return replace(teacher, state=state, shape=network_shape(state))

    def check_scale(self, scale: float) -> None:
        """Refuse a scale (`model.embedded_guidance`, at which the export is sampled) that would not be learned.

        Raises:
            ValueError: if it lies outside of the range, or the range is empty.
        """
        if not self.scale_min <= scale <= self.scale_max or self.scale_min == self.scale_max:
            raise ValueError(
                f"model.embedded_guidance must lie between method.scale_min and method.scale_max, which differ; found "
                f"{scale:g}, {self.scale_min:g} and {self.scale_max:g}"
            )


AnyMethod = Annotated[
    W2SConfig | DMDConfig | DMD2Config | OneStepConfig | LCMConfig | CFGConfig | SFTConfig, Field(discriminator="name")
]
