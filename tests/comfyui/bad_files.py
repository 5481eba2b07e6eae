"""Bad files: damaged, hostile, of other models, or with nonsense in their metadata.

Each function returns file names, which identify the cases, and contents.
"""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from magicdistill_core.recipe import METADATA_KEY

Files = dict[str, bytes]
_NAN = float("nan")
_HTML = b"<!DOCTYPE html><html><head><title>404</title></head><body>Entry not found</body></html>"
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 25641\n"
_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(64)


def _raw(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _header(entry: dict[str, Any] | None = None, **more: Any) -> bytes:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return json.dumps({"x": tensor | (entry or {})} | more).encode()


def damaged_safetensors(good: bytes) -> Files:
    """Return safetensors files from broken downloads, wrong renames and attackers."""
    tensor = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    return {
        "empty": b"",
        "one_byte": b"\x00",
        "eight_bytes": bytes(8),
        "noise": bytes((i * 73 + 41) % 256 for i in range(4096)),
        "zeros": bytes(4096),
        "header_of_2_to_the_63": struct.pack("<Q", 2**63) + bytes(64),
        "header_longer_than_file": struct.pack("<Q", 5000) + b"{}",
        "header_of_a_gigabyte": struct.pack("<Q", 2**30) + b"{" + bytes(64),
        "header_no_json": _raw(b"this is no JSON"),
        "header_a_list": _raw(b"[1, 2, 3]"),
        "header_nested_deep": _raw(b"[" * 20000),
        "header_no_utf8": _raw(b'{"\xff\xfe": 1}'),
        "tensor_beyond_the_end": _raw(_header({"data_offsets": [0, 8000], "shape": [2000]}), bytes(8)),
        "offsets_backwards": _raw(_header({"data_offsets": [8, 0]}), bytes(8)),
        "offsets_of_another_shape": _raw(_header({"shape": [3]}), bytes(8)),
        "shape_negative": _raw(_header({"shape": [-2]}), bytes(8)),
        "shape_overflows": _raw(_header({"shape": [2**62, 2**62]}), bytes(8)),
        "dtype_unknown": _raw(_header({"dtype": "F13"}), bytes(8)),
        "overlapping": _raw(_header(y={"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}), bytes(12)),
        "a_hole": _raw(_header(y={"dtype": "F32", "shape": [2], "data_offsets": [16, 24]}), bytes(24)),
        "metadata_no_text": _raw(_header(__metadata__={"a": {"b": 1}}), bytes(8)),
        "keys_twice": _raw(f'{{"x":{tensor},"x":{tensor}}}'.encode(), bytes(8)),
        "truncated_half": good[: len(good) // 2],
        "truncated_in_header": good[:200],
        "junk_behind": good + b"junk",
        "web_page": _HTML,
        "lfs_pointer": _LFS,
        "picture": _PNG,
        "gguf": b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(64),
        "zip": _zip({"a.txt": b"hello"}),
        "pickle": pickle.dumps({"x": [1, 2, 3]}, protocol=2),
    }


def _zip(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def _lying_zip() -> bytes:
    """Return a zip whose directory claims that its only member unpacks to 4 GB."""
    data = bytearray(_zip({"archive/data.pkl": b"x" * 64}))
    place = data.rindex(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", 0xFFFFFFF0)
    return bytes(data)


def _saved(value: object, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


class _Runs:
    """An object whose unpickling calls a function, as in an attack."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (f"open({self.canary!r}, 'w').write('ran')",)


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    return out.getvalue()


def bad_pickles(state: Mapping[str, Tensor], canary: str) -> Files:
    """Return pickles that are damaged, contain no weights, or would run code that writes the file `canary`."""
    whole = _saved(dict(state))
    return {
        "empty.pt": b"",
        "noise.pth": bytes((i * 73 + 41) % 256 for i in range(4096)),
        "web_page.ckpt": _HTML,
        "truncated.pth": whole[: len(whole) // 2],
        "zip_without_pickle.pt": _zip({"a.txt": b"hello"}),
        "zip_bomb.pt": _lying_zip(),
        "zip_of_zeros.pt": _zip({"archive/data.pkl": bytes(10_000_000)}),
        "tar.bin": _tar(),
        "runs_code.pt": _saved({"state_dict": dict(state), "x": _Runs(canary)}),
        "runs_code_bare.pth": pickle.dumps(_Runs(canary), protocol=2),
        "runs_code_old_format.pt": _saved({"x": _Runs(canary)}, _use_new_zipfile_serialization=False),
        "a_path.pt": _saved({"state_dict": {}, "x": PurePosixPath("x")}),
        "a_number.pt": _saved(3),
        "a_list.pt": _saved([torch.zeros(2)]),
        "a_tensor.pt": _saved(torch.zeros(2)),
        "no_tensors.pt": _saved({"epoch": 3, "loss": 0.1}),
        "empty_mapping.pt": _saved({}),
        "nested_too_deep.pt": _saved({"module": {"module": {"module": {"weights": dict(state)}}}}),
        "optimizer.pt": _saved({"optimizer": {"state": {0: torch.zeros(2)}}}),
        "zero3_shard.pt": _saved({"module": {}, "ds_version": "0.19"}),
        "other_network.pth": _saved({"state_dict": {"layer1.weight": torch.zeros(2, 2)}}),
    }


def bad_recipes(good: Mapping[str, Any]) -> Files:
    """Return weights with an invalid recipe."""
    changes: dict[str, Any] = {
        "steps_text": {"steps": "four"},
        "steps_zero": {"steps": 0},
        "steps_negative": {"steps": -4},
        "steps_broken": {"steps": 2.5},
        "steps_null": {"steps": None},
        "shift_zero": {"shift": 0},
        "shift_list": {"shift": [5]},
        "sampler_unknown": {"sampler": "dpmpp_2m"},
        "width_zero": {"width": 0},
        "height_text": {"height": "tall"},
        "frames_negative": {"frames": -17},
        "fps_zero": {"fps": 0},
        "guidance_below_1": {"guidance_scale": 0.5},
        "family_unknown": {"family": "flux"},
        "mode_unknown": {"i2v_mode": "banana"},
        "mode_of_another_family": {"family": "wan"},
        "kind_unknown": {"kind": "checkpoint"},
        "version_2": {"format_version": 2},
        "field_unknown": {"stepz": 4},
    }
    texts = {f"recipe_{name}": json.dumps(dict(good) | change) for name, change in changes.items()}
    texts |= {
        "recipe_empty": "",
        "recipe_no_json": "{steps: 4",
        "recipe_list": "[4, 5]",
        "recipe_number": "4",
        "recipe_null": "null",
        "recipe_nothing_said": "{}",
        "recipe_nested_deep": '{"a":' * 5000,
        "recipe_shift_nan": json.dumps(dict(good) | {"shift": _NAN}),
        "recipe_shift_infinite": json.dumps(dict(good) | {"shift": float("inf")}),
        "recipe_fps_nan": json.dumps(dict(good) | {"fps": _NAN}),
        "recipe_steps_a_million": json.dumps(dict(good) | {"steps": 10**6}),
        "recipe_width_huge": json.dumps(dict(good) | {"width": 10**9}),
    }
    return {f"{name}.safetensors": save({"x": torch.zeros(1)}, {METADATA_KEY: text}) for name, text in texts.items()}


def _without(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if part not in key}


def bad_models(state: Mapping[str, Tensor], metadata: dict[str, str]) -> Files:
    """Return transformers that are incomplete, inconsistent, of wrong types, or of other families.

    Args:
        state: the tensors of a valid file with a null prompt.
        metadata: its metadata with the recipe.
    """
    text, pooled = "null_prompt.text_states", "null_prompt.pooled"
    first = "double_blocks.0.img_attn_proj.weight"
    plain = _without(state, "null_prompt.")
    names = sorted(plain)
    wrong: dict[str, dict[str, Tensor]] = {
        "no_tensors": {},
        "null_prompt_only": {key: state[key] for key in (text, pooled)},
        "block_missing": _without(state, "single_blocks.0."),
        "last_layer_missing": _without(state, "final_layer."),
        "embedder_missing": _without(state, "img_in."),
        "vector_missing": _without(state, "vector_in."),
        "one_bias_missing": _without(state, "double_blocks.0.img_attn_qkv.bias"),
        "blocks_with_a_gap": {key.replace("single_blocks.0.", "single_blocks.7."): v for key, v in state.items()},
        "unknown_tensor": dict(state) | {"surprise.weight": torch.zeros(2)},
        "weight_too_narrow": dict(state) | {first: state[first][:, :64].clone()},
        "weight_a_vector": dict(state) | {first: state[first][0].clone()},
        "bias_too_long": dict(state) | {first.replace("weight", "bias"): torch.zeros(129)},
        "patch_embed_flat": dict(state) | {"img_in.proj.weight": torch.zeros(128, 33)},
        "width_of_96": dict(state) | {"img_in.proj.weight": torch.zeros(96, 33, 1, 2, 2)},
        "channels_of_7": dict(state) | {"img_in.proj.weight": torch.zeros(128, 7, 1, 2, 2)},
        "integers": {key: value.to(torch.int64) for key, value in state.items()},
        "truths": {key: value.to(torch.bool) for key, value in state.items()},
        "int8_without_scales": dict(plain) | {first: torch.ones(128, 128, dtype=torch.int8)},
        "null_prompt_narrow": dict(state) | {text: torch.zeros(1, 5, 7)},
        "null_prompt_flat": dict(state) | {text: torch.zeros(32)},
        "null_prompt_without_tokens": dict(state) | {text: torch.zeros(1, 0, 32)},
        "null_prompt_nan": dict(state) | {text: torch.full((1, 5, 32), _NAN)},
        "null_prompt_integers": dict(state) | {text: torch.ones(1, 5, 32, dtype=torch.int32)},
        "null_pooled_narrow": dict(state) | {pooled: torch.zeros(1, 5)},
        "null_pooled_flat": dict(state) | {pooled: torch.zeros(768)},
        "two_networks": {f"{stem}.{key}": value for key, value in plain.items() for stem in ("left", "right")},
        "flux": {f"double_blocks.0.img_attn.qkv.{leaf}": torch.zeros(4) for leaf in ("weight", "bias")},
        "sdxl": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)},
        "ltx": {"transformer_blocks.0.attn1.to_q.weight": torch.zeros(4, 4), "patchify_proj.weight": torch.zeros(4, 4)},
        "llama": {"model.layers.0.self_attn.q_proj.weight": torch.zeros(4, 4), "lm_head.weight": torch.zeros(4, 4)},
        "vae": {"decoder.conv_in.weight": torch.zeros(4, 4), "encoder.conv_in.weight": torch.zeros(4, 4)},
        "quanto": {f"{name}._data": torch.zeros(2, dtype=torch.int8) for name in names[:4]},
        "strange_names": {"": torch.zeros(2), "\u0000": torch.zeros(2), "../../x": torch.zeros(2)},
    }
    files = {f"{name}.safetensors": save(_clean(tensors), metadata) for name, tensors in wrong.items()}
    quantised = {"_quantization_metadata": "{no json", "format": "pt"}
    files["quantisation_no_json.safetensors"] = save(_clean(state), metadata | quantised)
    unknown = {"format_version": "1.0", "layers": {first.removesuffix(".weight"): {"format": "float3"}}}
    scales = {first: torch.ones(128, 128, dtype=torch.int8), first + "_scale": torch.tensor(0.1)}
    files["quantisation_unknown.safetensors"] = save(
        _clean(dict(state) | scales), metadata | {"_quantization_metadata": json.dumps(unknown)}
    )
    return files


def _clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.contiguous().clone() for key, value in state.items()}


def bad_loras(good: Mapping[str, Tensor], metadata: dict[str, str], recipe: Mapping[str, Any]) -> Files:
    """Return LoRAs with missing halves, of other kinds, of other models, or with impossible numbers.

    Args:
        good: the tensors of a valid LoRA for the tiny model.
        metadata: its metadata with the recipe.
        recipe: the recipe as a mapping.
    """
    stem = next(key.removesuffix(".lora_A.weight") for key in good if key.endswith(".lora_A.weight"))
    down, up, alpha = f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"
    sizes = good[down].shape[1], good[up].shape[0]
    pair = {down: good[down], up: good[up], alpha: good[alpha]}

    def changed(**tensors: Tensor) -> dict[str, Tensor]:
        return pair | {{"down": down, "up": up, "alpha": alpha}[name]: value for name, value in tensors.items()}

    wrong: dict[str, dict[str, Tensor]] = {
        "nothing": {},
        "no_pairs": {"a.weight": torch.zeros(2), "b.weight": torch.zeros(2)},
        "alphas_only": {alpha: torch.tensor(4.0)},
        "only_down": {down: good[down]},
        "only_up": {up: good[up]},
        "ranks_differ": changed(up=torch.zeros(sizes[1], good[down].shape[0] + 1)),
        "rank_zero": changed(down=torch.zeros(0, sizes[0]), up=torch.zeros(sizes[1], 0)),
        "vectors": changed(down=torch.zeros(4), up=torch.zeros(4)),
        "scalars": changed(down=torch.tensor(1.0), up=torch.tensor(1.0)),
        "nan": changed(down=torch.full_like(good[down], _NAN)),
        "infinite": changed(up=torch.full_like(good[up], float("inf"))),
        "alpha_nan": changed(alpha=torch.tensor(_NAN)),
        "alpha_infinite": changed(alpha=torch.tensor(float("inf"))),
        "alpha_a_vector": changed(alpha=torch.ones(3)),
        "integers": changed(down=torch.ones(4, sizes[0], dtype=torch.int32)),
        "twice": pair | {f"transformer.{key}": value for key, value in _renamed(pair, stem).items()},
        "dora": pair | {f"{stem}.dora_scale": torch.ones(sizes[1])},
        "loha": {f"{stem}.hada_w1_a": torch.zeros(4, 4), f"{stem}.hada_w1_b": torch.zeros(4, 4)},
        "lokr": {f"{stem}.lokr_w1": torch.zeros(4, 4), f"{stem}.lokr_w2": torch.zeros(4, 4)},
        "oft": {f"{stem}.oft_blocks": torch.zeros(4, 4, 4)},
        "of_wan": _lora("diffusion_model.blocks.0.self_attn.q", 128),
        "of_sdxl": _lora("lora_unet_input_blocks_4_1_proj_in", 64, "lora_down", "lora_up"),
        "of_flux": _lora("transformer.transformer_blocks.0.attn.to_out.7", 128),
        "of_text_encoder": _lora("lora_te1_text_model_encoder_layers_0_mlp_fc1", 64, "lora_down", "lora_up"),
        "too_wide": _lora(stem, 256),
        "null_prompt_narrow": pair | _prompt(torch.zeros(1, 5, 7)),
        "null_prompt_nan": pair | _prompt(torch.full((1, 5, 32), _NAN)),
        "null_prompt_flat": pair | _prompt(torch.zeros(32)),
        "blocks_beyond": _lora("diffusion_model.double_blocks.19.img_attn_proj", 128),
    }
    files = {f"{name}.safetensors": save(_clean(tensors), metadata) for name, tensors in wrong.items()}
    said: dict[str, dict[str, Any]] = {
        "recipe_other_mode": {"i2v_mode": "token_replace"},
        "recipe_other_family": {"family": "wan"},
        "recipe_bad_rank": {"lora_rank": 0},
        "recipe_bad_alpha": {"lora_alpha": -1},
    }
    for name, change in said.items():
        text = json.dumps(dict(recipe) | {"kind": "generator_lora"} | change)
        files[f"{name}.safetensors"] = save(_clean(pair), {METADATA_KEY: text})
    bare = {key: value for key, value in pair.items() if key != alpha}
    for name, text in {"no_json": "{", "a_list": "[1]", "alpha_text": '{"lora_alpha": "eight"}'}.items():
        files[f"adapter_{name}.safetensors"] = save(_clean(bare), {"lora_adapter_metadata": text})
    return files


def _prompt(text: Tensor) -> dict[str, Tensor]:
    return {"null_prompt.text_states": text, "null_prompt.pooled": torch.zeros(1, 768)}


def _renamed(pair: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    return {key.replace(stem, stem.removeprefix("diffusion_model.")): value for key, value in pair.items()}


def _lora(module: str, width: int, down: str = "lora_A", up: str = "lora_B") -> dict[str, Tensor]:
    return {f"{module}.{down}.weight": torch.zeros(4, width), f"{module}.{up}.weight": torch.zeros(width, 4)}


def bad_videos(good: bytes) -> Files:
    """Return files with the name of a video that are damaged or no videos."""
    return {
        "empty.mp4": b"",
        "noise.mp4": bytes((i * 73 + 41) % 256 for i in range(4096)),
        "web_page.webm": _HTML,
        "truncated.mp4": good[: len(good) // 3],
        "picture.mp4": _PNG,
    }
