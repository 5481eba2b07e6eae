"""DINO and CLIP with small random weights against other implementations."""

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from train.eval.networks.clip_aesthetic import vision_tower
from train.eval.networks.dino import Dino

CPU = torch.device("cpu")
WIDTH, HEADS, PATCH, SIDE = 48, 3, 8, 4


def dino_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    weights = {
        "cls_token": random(1, 1, WIDTH),
        "pos_embed": random(1, SIDE**2 + 1, WIDTH),
        "patch_embed.proj.weight": random(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": random(WIDTH),
        "norm.weight": 1 + random(WIDTH),
        "norm.bias": random(WIDTH),
    }
    for block in ("blocks.0", "blocks.1"):
        for name, rows, columns in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            weights |= {f"{block}.{name}.weight": random(rows, columns), f"{block}.{name}.bias": random(rows)}
        for norm in ("norm1", "norm2"):
            weights |= {f"{block}.{norm}.weight": 1 + random(WIDTH), f"{block}.{norm}.bias": random(WIDTH)}
    return weights


def test_dino_equals_the_transformer_of_transformers() -> None:
    weights = dino_weights()
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=SIDE * PATCH,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    network = ViTModel(config, add_pooling_layer=False).eval()
    own = network.state_dict()
    # In the order of the modules, both networks have the same tensors; only q, k and v are one tensor in DINO.
    flat = {
        "embeddings.cls_token": weights["cls_token"],
        "embeddings.position_embeddings": weights["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": weights["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": weights["patch_embed.proj.bias"],
        "layernorm.weight": weights["norm.weight"],
        "layernorm.bias": weights["norm.bias"],
    }
    parts = (("q", 0), ("k", 1), ("v", 2))
    for name in own:
        if ".0." not in name and ".1." not in name:
            continue
        block = f"blocks.{0 if '.0.' in name else 1}"
        kind = name.rsplit(".", 1)[1]
        for place, (letter, number) in enumerate(parts):
            if f"{letter}_proj" in name or ("query", "key", "value")[place] in name:
                flat[name] = weights[f"{block}.attn.qkv.{kind}"].chunk(3)[number]
        for ours, theirs in (
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc1", "mlp.fc1"),
        ):
            if theirs in name:
                flat[name] = weights[f"{block}.{ours}.{kind}"]
        if name not in flat:
            out = "attention" in name
            flat[name] = weights[f"{block}.{'attn.proj' if out else 'mlp.fc2'}.{kind}"]
    network.load_state_dict(flat)
    pixels = torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(Dino(weights, HEADS)(pixels), expected, rtol=1e-4, atol=1e-4)


def test_dino_reads_pictures_that_are_not_square() -> None:
    weights = dino_weights()
    grid = weights["pos_embed"][:, 1:].reshape(1, SIDE, SIDE, WIDTH)
    # Position embeddings that rise evenly to the right stay so at any size.
    weights["pos_embed"][:, 1:] = (torch.arange(SIDE).view(1, 1, SIDE, 1) * torch.ones_like(grid)).flatten(1, 2)
    positions = Dino(weights, HEADS)._positions(3, 8)
    assert positions.shape == (1, 25, WIDTH)
    row = positions[0, 1:, 0].view(3, 8)
    torch.testing.assert_close(row[0], row[2])
    steps = row[0].diff()[1:-1]
    assert (steps > 0).all()
    assert steps.mean().item() == pytest.approx(SIDE / 8.1, rel=0.1)


class OriginalCLIP(nn.Module):
    """OpenAI's vision transformer, from its description: attention by PyTorch's own module."""

    def __init__(self, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(SIDE**2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.proj = nn.Parameter(torch.randn(width, 32) / 8)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


def test_clip_equals_the_original() -> None:
    torch.manual_seed(0)
    original = OriginalCLIP().eval()
    for parameter in original.parameters():
        nn.init.normal_(parameter, std=0.15)
    weights = {f"visual.{name}": value for name, value in original.state_dict().items()} | {
        "logit_scale": torch.ones(1)
    }
    pixels = torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH)
    with torch.no_grad():
        expected = original(pixels)
    torch.testing.assert_close(vision_tower(weights, CPU)(pixels), expected, rtol=1e-4, atol=1e-4)
