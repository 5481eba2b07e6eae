"""Real/fake LoRA weights: the two score models of weak-to-strong distribution matching, from one base and one LoRA."""

from dataclasses import replace

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..magicdistill_core.branch import A_STRONG, A_WEAK
from .attachments import attach, attached_to
from .file_hash import file_stamp
from .low_rank import FittedLora, apply_lora, fit_lora
from .reporting import report


class RealFakeLora(io.ComfyNode):
    """Node `MagicDistillRealFakeLora`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillRealFakeLora",
            display_name="Real/fake LoRA weights",
            category="MagicDistillation/loaders",
            description="Shows what the distillation was steered by: the frozen base with its fake LoRA at a weak "
            "weight is the real score model, at a strong weight the fake one. Both outputs share the base's memory.",
            search_aliases=["magicdistill", "weak to strong", "w2s", "fake lora", "score model"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The base that the LoRA was trained on. Connect the teacher, not the generator."
                ),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="The fake LoRA of a distillation run, in models/loras. Change it to look at another run.",
                ),
                io.Float.Input(
                    "weight_real",
                    default=A_WEAK,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Weight of the branch in the real model, -4 to 4, no unit; usual 0 to 1. 0 is the plain "
                    "base (vanilla DMD), 0.25 the paper's. Change it to see how far the real score leans towards the "
                    "generator.",
                ),
                io.Float.Input(
                    "weight_fake",
                    default=A_STRONG,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Weight of the branch in the fake model, -4 to 4, no unit; 1 is how it was trained. "
                    "Change it only to experiment.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="real", tooltip="Base + weight_real * branch."),
                io.Model.Output(display_name="fake", tooltip="Base + weight_fake * branch."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **_: object) -> tuple[int, int]:
        return file_stamp("loras", lora_name)

    @classmethod
    def execute(cls, model: ModelPatcher, lora_name: str, weight_real: float, weight_fake: float) -> io.NodeOutput:
        lora = fit_lora(model, folder_paths.get_full_path_or_raise("loras", lora_name))
        real = _score_model(model, lora, lora_name, weight_real)
        fake = _score_model(model, lora, lora_name, weight_fake)
        text = f"{lora.said()}; real {weight_real:g}, fake {weight_fake:g}"
        return io.NodeOutput(real, fake, ui=report(cls, text, lora.warnings(model)))


def _score_model(model: ModelPatcher, lora: FittedLora, lora_name: str, weight: float) -> ModelPatcher:
    out = apply_lora(model, lora, weight)
    base = attached_to(model)
    if base is not None:
        attach(out, replace(base, loras=(*base.loras, (lora_name, weight))))
    return out
