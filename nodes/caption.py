"""Model caption: the text conditioning of a caption that is stored in the model file."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..magicdistill_core.captions import find_caption
from ..magicdistill_core.errors import CheckpointError
from .attachments import attached_to
from .prompt_conditioning import as_conditioning
from .reporting import report


class ModelCaption(io.ComfyNode):
    """Node `MagicDistillModelCaption`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagicDistillModelCaption",
            display_name="Model caption",
            category="MagicDistillation/conditioning",
            description="Tells a model one of the captions that it was trained with. Model files and LoRAs of "
            "trainings with up to 32 different captions carry the text conditioning of each, so no text encoder is "
            "needed.",
            search_aliases=["magicdistill", "caption", "prompt", "stored prompt", "ti2v", "clip text encode"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model, from Load few-step model or Load few-step LoRA, whose file carries captions. "
                    "Models from other loaders carry none.",
                ),
                io.String.Input(
                    "caption",
                    default="",
                    tooltip="The caption, as it was written in the training; capitals do not matter. The message under "
                    "the node lists all captions of the model. Empty (default) is the model's null prompt. Another "
                    "text is an error, because the model file has no text encoder for it.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The caption, for the input positive of Portrait to video.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, model: ModelPatcher, caption: str) -> io.NodeOutput:
        attached, wanted = attached_to(model), caption.strip()
        if attached is None:
            raise CheckpointError(
                "The model comes from another loader, so it carries no captions. Load its file with Load few-step "
                "model, or encode your text with CLIP Text Encode."
            )
        captions = attached.captions
        known = f"\nCaptions of this model: {'; '.join(captions) or 'none'}"
        if wanted:
            prompt = find_caption(captions, wanted, "The model")
        elif attached.null_prompt is not None:
            prompt = attached.null_prompt
        else:
            raise CheckpointError(
                f"The caption is empty, which means the null prompt, but the model's file carries none. Choose another "
                f"caption.{known}."
            )
        return io.NodeOutput(
            as_conditioning(prompt, attached.family), ui=report(cls, f"{wanted or 'null prompt'}{known}", [])
        )
