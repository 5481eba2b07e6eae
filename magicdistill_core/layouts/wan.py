"""Wan 2.1's names: the map between diffusers' `WanTransformer3DModel` and Wan's own single files.

ComfyUI reads Wan's names too.
"""

from .modules import LayoutMap, Module


def _attention(block: str, file: str, diffusers: str, image: bool) -> list[Module]:
    own, other = f"{block}.{file}", f"{block}.{diffusers}"
    modules = [Module(f"{own}.{name}", (f"{other}.to_{name}",)) for name in "qkv"]
    modules += [
        Module(f"{own}.o", (f"{other}.to_out.0",)),
        Module(f"{own}.norm_q", (f"{other}.norm_q",), bias=False),
        Module(f"{own}.norm_k", (f"{other}.norm_k",), bias=False),
    ]
    if image:
        modules += [
            Module(f"{own}.k_img", (f"{other}.add_k_proj",)),
            Module(f"{own}.v_img", (f"{other}.add_v_proj",)),
            Module(f"{own}.norm_k_img", (f"{other}.norm_added_k",), bias=False),
        ]
    return modules


_BLOCK = "blocks.{i}"
_EMBED = "condition_embedder"
_IMAGE = f"{_EMBED}.image_embedder"

WAN = LayoutMap(
    modules=(
        Module("patch_embedding", ("patch_embedding",)),
        Module("text_embedding.0", (f"{_EMBED}.text_embedder.linear_1",)),
        Module("text_embedding.2", (f"{_EMBED}.text_embedder.linear_2",)),
        Module("time_embedding.0", (f"{_EMBED}.time_embedder.linear_1",)),
        Module("time_embedding.2", (f"{_EMBED}.time_embedder.linear_2",)),
        Module("time_projection.1", (f"{_EMBED}.time_proj",)),
        Module("img_emb.proj.0", (f"{_IMAGE}.norm1",)),
        Module("img_emb.proj.1", (f"{_IMAGE}.ff.net.0.proj",)),
        Module("img_emb.proj.3", (f"{_IMAGE}.ff.net.2",)),
        Module("img_emb.proj.4", (f"{_IMAGE}.norm2",)),
        *_attention(_BLOCK, "self_attn", "attn1", image=False),
        *_attention(_BLOCK, "cross_attn", "attn2", image=True),
        # The norm before cross-attention is number 3 in Wan's names and number 2 in diffusers'.
        Module(f"{_BLOCK}.norm3", (f"{_BLOCK}.norm2",)),
        Module(f"{_BLOCK}.ffn.0", (f"{_BLOCK}.ffn.net.0.proj",)),
        Module(f"{_BLOCK}.ffn.2", (f"{_BLOCK}.ffn.net.2",)),
        Module("head.head", ("proj_out",)),
    ),
    parameters=(
        (f"{_BLOCK}.modulation", f"{_BLOCK}.scale_shift_table"),
        ("head.modulation", "scale_shift_table"),
    ),
    ignored=(".norm_added_q.weight",),
)
