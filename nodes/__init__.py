"""The ComfyUI nodes. They use ComfyUI's native types and leave everything independent of ComfyUI to the core.

Words in capitals (MODEL, LATENT, CONDITIONING) are ComfyUI's types. A *recipe* states how to sample from a model file;
it is stored in the file. A *null prompt* is the text conditioning that replaces a prompt; it is stored there too.
"""

import folder_paths
from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from ..magicdistill_core.pocket import files
from .caption import ModelCaption
from .load_lora import LoadLora
from .load_model import LoadModel
from .long_prompts import PromptPerSegment
from .long_video import LongVideo
from .lora_steps import LoraSteps
from .pocket_portrait import PocketPortrait
from .portrait_to_video import PortraitToVideo
from .quantise import Quantise
from .real_fake_lora import RealFakeLora
from .sampler import FewStepSampler
from .sampler_parts import FewStepSamplerSelect, FewStepSigmas
from .save_video import SaveVideo
from .similar_picture import SimilarPicture
from .text_image_encode import TextImageEncode


class MagicDistillExtension(ComfyExtension):
    """Register the nodes, and the pocket weights that this pack's loaders and the stock loaders list."""

    @override
    async def on_load(self) -> None:
        # ComfyUI saves into the first folder of a list. Appending ours keeps the user's files out of the pack.
        folder_paths.add_model_folder_path("diffusion_models", str(files.DIFFUSION_MODELS))
        folder_paths.add_model_folder_path("vae", str(files.VAES))
        folder_paths.add_model_folder_path("loras", str(files.LORAS))

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadModel,
            LoadLora,
            LoraSteps,
            RealFakeLora,
            PortraitToVideo,
            TextImageEncode,
            ModelCaption,
            FewStepSampler,
            FewStepSigmas,
            FewStepSamplerSelect,
            SaveVideo,
            PromptPerSegment,
            LongVideo,
            Quantise,
            PocketPortrait,
            SimilarPicture,
        ]
