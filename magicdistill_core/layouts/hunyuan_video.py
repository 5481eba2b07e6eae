"""HunyuanVideo's names: the map between diffusers' `HunyuanVideoTransformer3DModel` and Tencent's single files.

The map fits networks of any size. ComfyUI's own names differ from Tencent's mainly in their separators. Both are read.
Tencent's names are written; stock ComfyUI loads them.
"""

from .modules import LayoutMap, Module


def _double(stream: str, attention: tuple[str, str, str], out: str, norms: tuple[str, str], rest: str) -> list[Module]:
    block, file = "transformer_blocks.{i}", "double_blocks.{i}." + stream
    return [
        Module(f"{file}_mod.linear", (f"{block}.norm1{rest}.linear",)),
        Module(f"{file}_attn_qkv", tuple(f"{block}.attn.{name}" for name in attention)),
        Module(f"{file}_attn_q_norm", (f"{block}.attn.{norms[0]}",), bias=False),
        Module(f"{file}_attn_k_norm", (f"{block}.attn.{norms[1]}",), bias=False),
        Module(f"{file}_attn_proj", (f"{block}.attn.{out}",)),
        Module(f"{file}_mlp.fc1", (f"{block}.ff{rest}.net.0.proj",)),
        Module(f"{file}_mlp.fc2", (f"{block}.ff{rest}.net.2",)),
    ]


def _refiner() -> list[Module]:
    block = "context_embedder.token_refiner.refiner_blocks.{i}"
    file = "txt_in.individual_token_refiner.blocks.{i}"
    return [
        Module(f"{file}.norm1", (f"{block}.norm1",)),
        Module(f"{file}.self_attn_qkv", tuple(f"{block}.attn.to_{p}" for p in "qkv")),
        Module(f"{file}.self_attn_proj", (f"{block}.attn.to_out.0",)),
        Module(f"{file}.norm2", (f"{block}.norm2",)),
        Module(f"{file}.mlp.fc1", (f"{block}.ff.net.0.proj",)),
        Module(f"{file}.mlp.fc2", (f"{block}.ff.net.2",)),
        Module(f"{file}.adaLN_modulation.1", (f"{block}.norm_out.linear",)),
    ]


def _single() -> list[Module]:
    block, file = "single_transformer_blocks.{i}", "single_blocks.{i}"
    fused = (*(f"{block}.attn.to_{p}" for p in "qkv"), f"{block}.proj_mlp")
    return [
        Module(f"{file}.linear1", fused),
        Module(f"{file}.linear2", (f"{block}.proj_out",)),
        Module(f"{file}.q_norm", (f"{block}.attn.norm_q",), bias=False),
        Module(f"{file}.k_norm", (f"{block}.attn.norm_k",), bias=False),
        Module(f"{file}.modulation.linear", (f"{block}.norm.linear",)),
    ]


def _embedder(file: str, names: tuple[str, str], diffusers: str) -> list[Module]:
    return [Module(f"{file}.{name}", (f"{diffusers}.linear_{n}",)) for n, name in enumerate(names, start=1)]


_MLP = ("mlp.0", "mlp.2")
_TEMB, _CONTEXT = "time_text_embed", "context_embedder.time_text_embed"

HUNYUAN_VIDEO = LayoutMap(
    modules=(
        Module("img_in.proj", ("x_embedder.proj",)),
        Module("txt_in.input_embedder", ("context_embedder.proj_in",)),
        *_embedder("txt_in.t_embedder", _MLP, f"{_CONTEXT}.timestep_embedder"),
        *_embedder("txt_in.c_embedder", ("linear_1", "linear_2"), f"{_CONTEXT}.text_embedder"),
        *_refiner(),
        *_embedder("time_in", _MLP, f"{_TEMB}.timestep_embedder"),
        Module("vector_in.in_layer", (f"{_TEMB}.text_embedder.linear_1",)),
        Module("vector_in.out_layer", (f"{_TEMB}.text_embedder.linear_2",)),
        *_embedder("guidance_in", _MLP, f"{_TEMB}.guidance_embedder"),
        *_double("img", ("to_q", "to_k", "to_v"), "to_out.0", ("norm_q", "norm_k"), ""),
        *_double(
            "txt",
            ("add_q_proj", "add_k_proj", "add_v_proj"),
            "to_add_out",
            ("norm_added_q", "norm_added_k"),
            "_context",
        ),
        *_single(),
        Module("final_layer.linear", ("proj_out",)),
        Module("final_layer.adaLN_modulation.1", ("norm_out.linear",), swap_halves=True),
    ),
    # ComfyUI's names of the same modules.
    aliases=(
        (r"^(time_in|guidance_in|txt_in\.t_embedder)\.in_layer\.", r"\1.mlp.0."),
        (r"^(time_in|guidance_in|txt_in\.t_embedder)\.out_layer\.", r"\1.mlp.2."),
        (r"^txt_in\.c_embedder\.in_layer\.", "txt_in.c_embedder.linear_1."),
        (r"^txt_in\.c_embedder\.out_layer\.", "txt_in.c_embedder.linear_2."),
        (r"(_mod|\.modulation)\.lin\.", r"\1.linear."),
        (r"_attn\.(qkv|proj)\.", r"_attn_\1."),
        (r"_attn\.norm\.query_norm\.(weight|scale)$", r"_attn_q_norm.weight"),
        (r"_attn\.norm\.key_norm\.(weight|scale)$", r"_attn_k_norm.weight"),
        (r"\.norm\.query_norm\.(weight|scale)$", r".q_norm.weight"),
        (r"\.norm\.key_norm\.(weight|scale)$", r".k_norm.weight"),
        (r"(_mlp|blocks\.\d+\.mlp)\.0\.", r"\1.fc1."),
        (r"(_mlp|blocks\.\d+\.mlp)\.2\.", r"\1.fc2."),
    ),
    optional=("guidance_in.mlp.0", "guidance_in.mlp.2"),
)
