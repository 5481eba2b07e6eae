"""Real/fake LoRA weights: build the two score models of weak-to-strong distribution matching from a base and a LoRA.

A distillation trains the generator with the difference of two score models. Both are the teacher plus one LoRA: at a
weak weight for the real score, at a strong weight for the fake score (MagicDistillation, Eq. 5 and 6).
"""

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
            description="Rebuilds the two score models that guided a distillation: the frozen base with the fake LoRA "
            "at a weak weight (real score) and at a strong weight (fake score). Both outputs share the base's memory.",
            search_aliases=["magicdistill", "weak to strong", "w2s", "fake lora", "score model"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The base that the fake LoRA was trained on, from Load few-step model or another loader. "
                    "Connect the teacher, not the generator.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="The fake LoRA of a distillation, from models/loras. Each checkpoint of the run contains "
                    "it as fake_lora.safetensors.",
                ),
                io.Float.Input(
                    "weight_real",
                    default=A_WEAK,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Weight of the LoRA in the real score model, from -4 to 4 (no unit). 0.25 (default) is the "
                    "paper's value, and 0 is the plain base (vanilla DMD). At higher values the real score gets closer "
                    "to the generator.",
                ),
                io.Float.Input(
                    "weight_fake",
                    default=A_STRONG,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Weight of the LoRA in the fake score model, from -4 to 4 (no unit). 1 (default) is the "
                    "value of training. Use another one only for experiments.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="real", tooltip="The real score model: base + weight_real * LoRA."),
                io.Model.Output(display_name="fake", tooltip="The fake score model: base + weight_fake * LoRA."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **_: object) -> tuple[int, int]:
        return file_stamp("loras", lora_name)

    @classmethod
    def execute(cls, model: ModelPatcher, lora_name: str, weight_real: float, weight_fake: float) -> io.NodeOutput:
        lora = fit_lora(model, folder_paths.get_full_path_or_raise("loras", lora_name))
        real = _score_model(model, lora, lora_name, weight_real)
        fake = _score_model(model, lora, lora_name, weight_fake)
        text = f"{lora.summary()}; real {weight_real:g}, fake {weight_fake:g}"
        return io.NodeOutput(real, fake, ui=report(cls, text, lora.warnings(model)))


def _score_model(model: ModelPatcher, lora: FittedLora, lora_name: str, weight: float) -> ModelPatcher:
    out = apply_lora(model, lora, weight)
    base = attached_to(model)
    if base is not None:
        attach(out, base.with_lora(lora_name, weight, {**lora.patches, **lora.parameters}))
    return out
