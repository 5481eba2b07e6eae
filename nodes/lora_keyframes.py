"""Choose a LoRA strength by the number of the step, independent of the schedule's noise levels."""

from collections.abc import Sequence

from comfy.hooks import HookKeyframe, HookKeyframeGroup
from torch import Tensor

from ..magicdistill_core.lora_schedule import step_at, strength_at


class StepKeyframes(HookKeyframeGroup):
    """One keyframe (ComfyUI's record of a strength) per step, chosen by the current step.

    ComfyUI's own keyframes start at a fraction of the sampling, which ComfyUI converts to a noise level with the
    MODEL's shift. The schedule may use a different shift: every schedule that is not computed from the MODEL, and ours
    for a model without a recipe.

    Args:
        strengths: one per step; the last one is repeated.
        steps: the number of steps of the full schedule, also if sampling starts in the middle of it.
    """

    def __init__(self, strengths: Sequence[float], steps: int) -> None:
        super().__init__()
        self._steps = steps
        for step in range(max(steps, len(strengths))):
            # Start half a step early: comparing a level with a boundary at the same level would depend on rounding.
            start = max(0.0, (step - 0.5) / steps)
            self.add(HookKeyframe(strength_at(strengths, step), start, guarantee_steps=0))

    def prepare_current_keyframe(self, curr_t: Tensor, transformer_options: dict[str, Tensor]) -> bool:
        """Select the keyframe of the step that starts at a noise level; return whether the strength changed.

        Args:
            curr_t: the noise level of the current network call, a scalar.
            transformer_options: ComfyUI's options of the call; `sample_sigmas` holds the schedule.
        """
        step = step_at(float(curr_t), transformer_options["sample_sigmas"].tolist(), self._steps)
        if step is None:
            return super().prepare_current_keyframe(curr_t, transformer_options)
        before = self.strength
        self._current_keyframe = self.keyframes[min(step, len(self.keyframes) - 1)]
        return self.strength != before
