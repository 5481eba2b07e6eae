"""What is known of a MODEL besides its weights, attached to it so that it travels along."""

from dataclasses import dataclass
from pathlib import Path

from comfy.model_base import WAN21, HunyuanVideoI2V
from comfy.model_patcher import ModelPatcher

from ..magicdistill_core.families.base import Family, NullPrompt
from ..magicdistill_core.families.hunyuan_video import CONCAT
from ..magicdistill_core.families.wan import IMAGE_TO_VIDEO
from ..magicdistill_core.recipe import Recipe
from ..magicdistill_core.soundness import check_null_prompt
from .file_hash import BackgroundHash

_KEY = "magicdistill"


@dataclass(frozen=True)
class Attached:
    """What is known of a MODEL beside its weights.

    Attributes:
        path: the file that it was loaded from; None after another loader, which does not tell.
        family: its transformer and its way of taking the start image.
        recipe: how it is to be sampled: the file's, or that of a generator LoRA on top; None if neither carries one.
        null_prompt: the text conditioning that the file carries, or None.
        size: number and type of the file's weights in words; None where `path` is.
        file_hash: of `path`, begun when the file was loaded; None where `path` is.
        loras: name and strength of each LoRA that the pack's nodes put on the model, in order.
    """

    path: Path | None
    family: Family
    recipe: Recipe | None
    null_prompt: NullPrompt | None
    size: str | None = None
    file_hash: BackgroundHash | None = None
    loras: tuple[tuple[str, float], ...] = ()

    def sha256(self) -> str | None:
        """The sha256 of the loaded file, waited for if need be; None if the file is not known or gone."""
        return None if self.file_hash is None else self.file_hash.wait()


def attach(model: ModelPatcher, attached: Attached) -> None:
    """Put `attached` on a MODEL; clones that later nodes make keep it."""
    model.set_attachments(_KEY, attached)


def attached_to(model: ModelPatcher) -> Attached | None:
    """What `attach` put on this MODEL or on one that it was cloned from; None after another loader."""
    return model.get_attachment(_KEY)


def check_prompt_fits(model: ModelPatcher, prompt: NullPrompt, source: str) -> None:
    """Refuse a null prompt that is not for this MODEL.

    Raises:
        CheckpointError: saying what is wrong with it.
    """
    config = model.model.model_config.unet_config
    check_null_prompt(prompt, source, config.get("context_in_dim"), config.get("vec_in_dim"))


def known_family(model: ModelPatcher) -> Family | None:
    """The family of a MODEL of any loader: what is attached, or what its network can be only; None where it is open.

    16-channel HunyuanVideo networks are open: text-to-video and token replacement have the same weights' shapes.
    """
    attached = attached_to(model)
    if attached is not None:
        return attached.family
    network = model.model
    if isinstance(network, HunyuanVideoI2V):
        return CONCAT
    # Relatives of Wan 2.1 are subclasses, take other channels, or look at no CLIP features.
    config = network.model_config.unet_config
    wan = type(network) is WAN21 and config.get("model_type") == "i2v"
    return IMAGE_TO_VIDEO if wan and config.get("in_dim") == IMAGE_TO_VIDEO.in_channels else None
