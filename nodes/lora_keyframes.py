"""Strengths by the number of the step, whatever noise levels a schedule gives to the steps."""

from collections.abc import Sequence

from comfy.hooks import HookKeyframe, HookKeyframeGroup
from torch import Tensor

from ..magicdistill_core.lora_schedule import step_at, strength_at


class StepKeyframes(HookKeyframeGroup):
    """Keyframes, one a step, chosen by the step that ComfyUI is at.

    ComfyUI's own begin at a part of the sampling, which it turns into a noise level by the MODEL's shift. The schedule
    may have another: every schedule that is not made from the MODEL, and ours for a model without a recipe.

    Args:
        strengths: one a step; the last one is repeated.
        steps: of the whole sampling, for one that begins in its middle.
    """

    def __init__(self, strengths: Sequence[float], steps: int) -> None:
        super().__init__()
        self._steps = steps
        for step in range(max(steps, len(strengths))):
            # Half a step early: a level compared with a boundary at the very same level would be a matter of luck.
            start = max(0.0, (step - 0.5) / steps)
            self.add(HookKeyframe(strength_at(strengths, step), start, guarantee_steps=0))

    def prepare_current_keyframe(self, curr_t: Tensor, transformer_options: dict[str, Tensor]) -> bool:
        """Go to the keyframe of the step that this noise level begins; whether the strength is another now."""
        step = step_at(float(curr_t), transformer_options["sample_sigmas"].tolist(), self._steps)
        if step is None:
            return super().prepare_current_keyframe(curr_t, transformer_options)
        before = self.strength
        self._current_keyframe = self.keyframes[min(step, len(self.keyframes) - 1)]
        return self.strength != before
