"""The model files of the workflows, with their folders and download URLs."""

from dataclasses import dataclass

_HUNYUAN = "https://huggingface.co/Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files"
_WAN = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
_FLUX_TEXT = "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main"
_KIJAI_WAN = "https://huggingface.co/Kijai/WanVideo_comfy/resolve/main"
_FRAMES = "https://huggingface.co/Comfy-Org/frame_interpolation/resolve/main"
_UPSCALING = "https://huggingface.co/Comfy-Org/Real-ESRGAN_repackaged/resolve/main"
_DREAMSHAPER = "https://huggingface.co/Lykon/DreamShaper/resolve/main"


@dataclass(frozen=True)
class ModelFile:
    """A model file.

    Attributes:
        name: name of the file.
        directory: folder inside ComfyUI's `models`.
        url: download URL; None for files of the pack and for files exported by the trainer.
    """

    name: str
    directory: str
    url: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """Return the file's entry in a node's property `models`.

        ComfyUI's page offers to download missing files of this list.
        """
        return {"name": self.name, "url": self.url, "directory": self.directory}


def _public(folder: str, path: str, directory: str) -> ModelFile:
    return ModelFile(path.rpartition("/")[2], directory, f"{folder}/{path}")


POCKET_TEACHER = ModelFile("magicdistill_pocket_teacher.safetensors", "diffusion_models")
POCKET_4STEP_LORA = ModelFile("magicdistill_pocket_4step_lora.safetensors", "loras")
POCKET_1STEP_LORA = ModelFile("magicdistill_pocket_1step_lora.safetensors", "loras")
POCKET_FAKE_LORA = ModelFile("magicdistill_pocket_fake_lora.safetensors", "loras")
POCKET_CAPTIONED_4STEP_LORA = ModelFile("magicdistill_pocket_captioned_4step_lora.safetensors", "loras")
POCKET_VAE = ModelFile("magicdistill_pocket_vae.safetensors", "vae")

HUNYUAN_W2S = ModelFile("hunyuan_i2v_w2s_4step.safetensors", "diffusion_models")
HUNYUAN_W2S_LORA = ModelFile("hunyuan_i2v_w2s_4step_lora.safetensors", "loras")
HUNYUAN_ONE_STEP = ModelFile("hunyuan_i2v_one_step.safetensors", "diffusion_models")
MAGIC141_W2S = ModelFile("magic141_w2s_4step.safetensors", "diffusion_models")

HUNYUAN_I2V = _public(
    _HUNYUAN, "diffusion_models/hunyuan_video_image_to_video_720p_bf16.safetensors", "diffusion_models"
)
HUNYUAN_VAE = _public(_HUNYUAN, "vae/hunyuan_video_vae_bf16.safetensors", "vae")
LLAVA_TEXT = _public(_HUNYUAN, "text_encoders/llava_llama3_fp8_scaled.safetensors", "text_encoders")
LLAVA_VISION = _public(_HUNYUAN, "clip_vision/llava_llama3_vision.safetensors", "clip_vision")
CLIP_L = _public(_FLUX_TEXT, "clip_l.safetensors", "text_encoders")
# The release calls this file model.safetensors, a name that says nothing in a folder.
CLIP_L_VISION = ModelFile("clip-vit-large-patch14.safetensors", "clip_vision")

WAN_I2V = _public(_WAN, "diffusion_models/wan2.1_i2v_480p_14B_fp16.safetensors", "diffusion_models")
WAN_VAE = _public(_WAN, "vae/wan_2.1_vae.safetensors", "vae")
WAN_TEXT = _public(_WAN, "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders")
WAN_VISION = _public(_WAN, "clip_vision/clip_vision_h.safetensors", "clip_vision")
WAN_LORA = _public(_KIJAI_WAN, "Lightx2v/lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors", "loras")

DREAMSHAPER = _public(_DREAMSHAPER, "DreamShaper_8_pruned.safetensors", "checkpoints")

FILM = _public(_FRAMES, "frame_interpolation/film_net_fp16.safetensors", "frame_interpolation")
REAL_ESRGAN = _public(_UPSCALING, "RealESRGAN_x4plus.safetensors", "upscale_models")
