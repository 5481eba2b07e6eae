"""Facts about a MODEL other than its weights, such as the recipe of its file (how to sample from it).

They are attached to the MODEL and stay with its clones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from comfy.model_base import WAN21, HunyuanVideo, HunyuanVideoI2V
from comfy.model_patcher import ModelPatcher

from ..magicdistill_core.families.base import Family, NullPrompt
from ..magicdistill_core.families.hunyuan_video import CONCAT, TOKEN_REPLACE
from ..magicdistill_core.families.wan import IMAGE_TO_VIDEO
from ..magicdistill_core.recipe import Recipe
from ..magicdistill_core.soundness import check_null_prompt
from .file_hash import BackgroundHash

_KEY = "magicdistill"
# ComfyUI's name for the size of the CLIP features' positions, which only Wan 2.1 FLF2V has.
FLF2V_MARK = "flf_pos_embed_token_number"


@dataclass(frozen=True)
class Attached:
    """Facts about a MODEL other than its weights.

    Attributes:
        path: the model file; None if another pack's loader or a stock loader loaded it.
        family: the architecture and how the start image enters.
        recipe: the sampling settings, from the model file or from a generator LoRA on top; None if neither has any.
        null_prompt: the text conditioning stored in the file, or None.
        size: number and type of the file's weights in words; None if `path` is None.
        file_hash: the hash of `path`, started when the file was loaded; None if `path` is None.
        loras: name and strength of each LoRA that this pack's nodes applied to the model, in order.
        patches: the changes of these LoRAs by the names of the weights. They tell this pack's patches from those of
            other nodes.
        weight_dtype: the loader's input of that name; None if `path` is None.
        captions: the text conditioning of the captions stored in the file, by caption.
    """

    path: Path | None
    family: Family
    recipe: Recipe | None
    null_prompt: NullPrompt | None
    size: str | None = None
    file_hash: BackgroundHash | None = None
    loras: tuple[tuple[str, float], ...] = ()
    patches: tuple[Mapping[str, object], ...] = ()
    weight_dtype: str | None = None
    captions: Mapping[str, NullPrompt] = field(default_factory=dict)

    def with_lora(self, name: str, strength: float, patches: Mapping[str, object]) -> "Attached":
        """Return these facts with one more LoRA.

        Args:
            name: the LoRA's file name.
            strength: its strength.
            patches: its changes by the names of the weights.
        """
        return replace(self, loras=(*self.loras, (name, strength)), patches=(*self.patches, patches))

    def sha256(self) -> str | None:
        """Return the sha256 of the loaded file in hexadecimal; None if the file is unknown or unreadable.

        Waits until it has been computed.
        """
        return None if self.file_hash is None else self.file_hash.wait()


def attach(model: ModelPatcher, attached: Attached) -> None:
    """Attach facts to a MODEL, which is changed in place. Clones made by later nodes keep them.

    Args:
        model: the MODEL.
        attached: the facts; they replace earlier ones.
    """
    model.set_attachments(_KEY, attached)


def attached_to(model: ModelPatcher) -> Attached | None:
    """Return the facts attached to a MODEL or to its original; None if another loader loaded it."""
    return model.get_attachment(_KEY)


def check_prompt_fits(model: ModelPatcher, prompt: NullPrompt, source: str, name: str = "null prompt") -> None:
    """Check that a prompt (the text conditioning in a model file) has the sizes that a MODEL expects.

    Args:
        model: the MODEL.
        prompt: the null prompt or a caption.
        source: the name of the prompt's file for error messages.
        name: what the prompt is, for error messages.

    Raises:
        CheckpointError: if it does not; the message states the wrong size.
    """
    config = model.model.model_config.unet_config
    check_null_prompt(prompt, source, config.get("context_in_dim"), config.get("vec_in_dim"), name)


def check_captions_fit(model: ModelPatcher, captions: Mapping[str, NullPrompt], source: str) -> None:
    """Check that all captions of a file have the sizes that a MODEL expects; errors as in `check_prompt_fits`.

    Args:
        model: the MODEL.
        captions: the text conditioning by caption.
        source: the file's name for error messages.
    """
    for caption, prompt in captions.items():
        check_prompt_fits(model, prompt, source, f"caption {caption!r:.60}")


def known_family(model: ModelPatcher) -> Family | None:
    """Return the family of a MODEL from any loader: the attached one, or the one that follows from its network.

    Args:
        model: the MODEL.

    Returns:
        The architecture and how the start image enters it; None if the network does not decide it. HunyuanVideo
        networks with 16 input channels do not: text-to-video and token replacement have weights of the same shapes.
    """
    attached = attached_to(model)
    if attached is not None:
        return attached.family
    network = model.model
    if isinstance(network, HunyuanVideoI2V):
        return CONCAT
    # Variants of Wan 2.1 are subclasses, have other input channels, or use no CLIP features.
    config = network.model_config.unet_config
    wan = type(network) is WAN21 and config.get("model_type") == "i2v"
    # A model for first and last frame has two images among its CLIP features.
    wan = wan and not config.get(FLF2V_MARK)
    return IMAGE_TO_VIDEO if wan and config.get("in_dim") == IMAGE_TO_VIDEO.in_channels else None


def assumed_family(model: ModelPatcher) -> Family | None:
    """Return the family of a MODEL that is to take a start image: the known one, or else the only one that fits.

    A HunyuanVideo network with 16 input channels can take a start image by token replacement only.

    Args:
        model: the MODEL.

    Returns:
        The family; None if the MODEL is of none.
    """
    family = known_family(model)
    return TOKEN_REPLACE if family is None and type(model.model) is HunyuanVideo else family
