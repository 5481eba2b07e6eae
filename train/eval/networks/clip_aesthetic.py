"""OpenAI's CLIP ViT-L/14 with LAION's linear aesthetic head."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

Aesthetic = Callable[[Tensor], Tensor]
"""A function from normalised pixels `[N, 3, 224, 224]` to scores of about 0 to 10, `[N]`."""

_HEAD_WIDTH = 64


def load_aesthetic(clip: Path, head: Path, device: torch.device) -> Aesthetic:
    """Load both networks.

    Args:
        clip: `ViT-L-14.pt`, OpenAI's TorchScript archive.
        head: `sa_0_4_vit_l_14_linear.pth`.
        device: where they compute.
    """
    weights = torch.jit.load(clip, map_location="cpu").state_dict()
    encode = vision_tower(weights, device)
    linear = torch.load(head, map_location=device, weights_only=True)

    @torch.no_grad()
    def score(pixels: Tensor) -> Tensor:
        return F.linear(F.normalize(encode(pixels), dim=-1), linear["weight"], linear["bias"])[:, 0]

    return score


def vision_tower(weights: Mapping[str, Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the image encoder of an OpenAI CLIP (ViT), computed by transformers in fp32.

    Args:
        weights: OpenAI's state dict.
        device: where it computes.
    """
    # Imported here because it takes seconds.
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    own = {name.removeprefix("visual."): value.float() for name, value in weights.items() if name.startswith("visual.")}
    width, patch = own["conv1.weight"].shape[0], own["conv1.weight"].shape[-1]
    side = round((len(own["positional_embedding"]) - 1) ** 0.5)
    depth = len({name.split(".")[2] for name in own if name.startswith("transformer.resblocks.")})
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=width // _HEAD_WIDTH,
        image_size=side * patch,
        patch_size=patch,
        projection_dim=own["proj"].shape[1],
        hidden_act="quick_gelu",
    )
    network = CLIPVisionModelWithProjection(config)
    renamed = _transformers_names(own)
    missing = network.load_state_dict(renamed, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"vision_model.embeddings.position_ids"}:
        raise ValueError(f"The CLIP weights do not fit transformers: {missing}.")
    network = network.eval().to(device)

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        return network(pixels.to(device)).image_embeds.float()

    return encode


def _transformers_names(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "class_embedding": "vision_model.embeddings.class_embedding",
        "positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "ln_pre.weight": "vision_model.pre_layrnorm.weight",
        "ln_pre.bias": "vision_model.pre_layrnorm.bias",
        "ln_post.weight": "vision_model.post_layernorm.weight",
        "ln_post.bias": "vision_model.post_layernorm.bias",
    }
    parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    renamed = {"visual_projection.weight": own["proj"].T.contiguous()}
    for name, value in own.items():
        if name in names:
            renamed[names[name]] = value
        elif name.startswith("transformer.resblocks."):
            number, rest = name.removeprefix("transformer.resblocks.").split(".", 1)
            layer = f"vision_model.encoder.layers.{number}"
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"{layer}.self_attn.{letter}_proj.{kind}"] = third
            else:
                part, kind = rest.rsplit(".", 1)
                renamed[f"{layer}.{parts[part]}.{kind}"] = value
    return renamed
