"""The settings of every training method, and what each method needs: a union that the field `name` tells apart.

Apart from the methods themselves, so that a configuration is read without DeepSpeed.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from magicdistill_core.branch import A_STRONG, A_WEAK

from .section import Positive, Section

# The networks that are trained; each has an engine and an optimizer of its own.
GENERATOR, FAKE = "generator", "fake"


class MethodConfig(Section):
    """What all methods share."""

    # Who is trained. Every method trains a generator: that is what the run exports.
    players: ClassVar[tuple[str, ...]] = (GENERATOR,)
    # Whether the frozen teacher must be at hand besides (`Players.teacher`).
    uses_teacher: ClassVar[bool] = False

    name: str

    def recipe_fields(self) -> dict[str, Any]:
        """What the recipe of the exported files says beyond schedule and data (fields of `Recipe`)."""
        return {"method": self.name}


class W2SConfig(MethodConfig):
    """Weak-to-strong distribution matching (MagicDistillation)."""

    players = (GENERATOR, FAKE)

    name: Literal["w2s"] = "w2s"
    a_weak: float = Field(A_WEAK, ge=0, description="Branch weight of the real score (MD Eq. 6); 0 is vanilla DMD.")
    a_strong: float = Field(A_STRONG, gt=0, description="Branch weight of the fake score.")
    fake_updates: Positive = Field(5, description="Updates of the fake branch before each of the generator.")
    normalize: bool = Field(True, description="DMD2's normalisation; false is the papers' own form.")
    fake_loss_scale: float = Field(1.0, gt=0, description="MD uses 1e4; clipping sees the unscaled gradient.")

    def recipe_fields(self) -> dict[str, Any]:
        """With the branch weights."""
        return super().recipe_fields() | {"a_weak": self.a_weak, "a_strong": self.a_strong}


AnyMethod = Annotated[W2SConfig, Field(discriminator="name")]
