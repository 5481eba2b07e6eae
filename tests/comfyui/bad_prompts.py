"""Prompts that cannot work: inputs out of range or of wrong types, paths outside the folder, mismatched connections.

A case is a prompt in the API's format. The server must explain what is wrong with it.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Prompt = dict[str, dict[str, Any]]
_NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """A prompt that must end in an error message.

    Attributes:
        prompt: the prompt in the API's format.
        names: a file or value that the message must name.
    """

    prompt: Prompt
    names: str = ""


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Return a node of a prompt."""
    return {"class_type": class_type, "inputs": inputs}


def loader(unet_name: str = "tiny.safetensors", mode: str = "from the file") -> dict[str, Any]:
    """Return the node Load few-step model."""
    return node("MagicDistillLoadModel", unet_name=unet_name, weight_dtype="default", start_image_mode=mode)


def _portrait_to_video(**changes: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"model": ["load", 0], "vae": ["vae", 0], "start_image": ["portrait", 0]}
    return node(
        "MagicDistillPortraitToVideo", **inputs | {"width": 0, "height": 0, "length": 0, "batch_size": 1} | changes
    )


def _sampler(**changes: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"model": ["load", 0], "conditioning": ["video", 0], "latent": ["video", 1]}
    return node("MagicDistillSampler", **inputs | {"seed": 3, "steps": 1, "shift": 0.0, "sampler": "recipe"} | changes)


def _save(**changes: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"video": ["portrait", 0], "fps": 8.0, "filename_prefix": "fuzz/x"}
    return node("MagicDistillSaveVideo", **inputs | {"format": "mp4 (h264)", "crf": 18.0} | changes)


def _long(**changes: Any) -> dict[str, Any]:
    inputs = _sampler()["inputs"] | {"vae": ["vae", 0], "seconds": 2.0, "filename_prefix": "fuzz/long"}
    return node("MagicDistillLongVideo", **inputs | changes)


def _similar(**changes: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"folder": "", "clip_vision": ["load", 0], "rank": 1, "shown": 1}
    return node("MagicDistillSimilarPicture", **inputs | changes)


def _shown(source: str, output: int = 0) -> dict[str, Any]:
    return node("PreviewAny", source=[source, output])


BASE: Prompt = {
    "load": loader(),
    "vae": node("VAELoader", vae_name="tiny_vae.safetensors"),
    "portrait": node("MagicDistillPocketPortrait", seed=1, size=64),
}
# One valid node of each class. The cases make one input wrong at a time.
GOOD: Prompt = {
    "MagicDistillLoadModel": loader(),
    "MagicDistillLoadLora": node(
        "MagicDistillLoadLora", model=["load", 0], lora_name="fuzz/plain.safetensors", strength=1.0
    ),
    "MagicDistillLoraSteps": node(
        "MagicDistillLoraSteps",
        model=["load", 0],
        conditioning=["video", 0],
        lora_name="tiny_fake.safetensors",
        strengths="1",
        steps=0,
    ),
    "MagicDistillRealFakeLora": node(
        "MagicDistillRealFakeLora",
        model=["load", 0],
        lora_name="tiny_fake.safetensors",
        weight_real=0.25,
        weight_fake=1.0,
    ),
    "MagicDistillPortraitToVideo": _portrait_to_video(),
    "MagicDistillTextImageEncode": node(
        "MagicDistillTextImageEncode", clip=["load", 0], clip_vision_output=["load", 0], prompt=""
    ),
    "MagicDistillModelCaption": node("MagicDistillModelCaption", model=["load", 0], caption=""),
    "MagicDistillSampler": _sampler(),
    "MagicDistillSigmas": node("MagicDistillSigmas", model=["load", 0], steps=0, shift=0.0),
    "MagicDistillSamplerSelect": node("MagicDistillSamplerSelect", model=["load", 0], sampler="recipe"),
    "MagicDistillQuantise": node("MagicDistillQuantise", unet_name="tiny.safetensors"),
    "MagicDistillSaveVideo": _save(),
    "MagicDistillPocketPortrait": node("MagicDistillPocketPortrait", seed=1, size=64),
    "MagicDistillLongVideo": _long(),
    "MagicDistillSegmentPrompts": node("MagicDistillSegmentPrompts", model=["load", 0], prompts=""),
    "MagicDistillSimilarPicture": _similar(),
}


def wrong_values(schemas: Mapping[str, Any]) -> dict[str, Case]:
    """Return every input of every node of the pack: out of range, of a wrong type, and missing."""
    cases = {}
    for class_type, schema in schemas.items():
        for group in ("required", "optional"):
            for name, (kind, options) in schema["input"].get(group, {}).items():
                for label, value in _wrong(kind, options, group == "required").items():
                    prompt = deepcopy(BASE) | {"video": _portrait_to_video(), "tested": deepcopy(GOOD[class_type])}
                    if value is _ABSENT:
                        del prompt["tested"]["inputs"][name]
                    else:
                        prompt["tested"]["inputs"][name] = value
                    if schema["output"]:
                        prompt["shown"] = _shown("tested")
                    cases[f"{class_type}.{name}: {label}"] = Case(prompt, name)
    return cases


_ABSENT = object()


def _wrong(kind: str, options: Mapping[str, Any], required: bool) -> dict[str, Any]:
    wrong: dict[str, Any] = {"absent": _ABSENT} if required else {}
    match kind:
        case "INT" | "FLOAT":
            step = 1 if kind == "INT" else options.get("step", 0.1)
            wrong |= {"below": options["min"] - step, "above": options["max"] + step, "text": "many", "nothing": None}
        case "COMBO":
            wrong |= {"unknown": "nonsense", "empty": "", "number": 5}
        case "STRING":
            pass
        case _:
            wrong |= {"another type": ["portrait" if "IMAGE" not in kind else "vae", 0]}
    return wrong


def wrong_numbers() -> dict[str, Case]:
    """Return values that are numbers only in JSON, or that are in range but cannot work."""
    chain = deepcopy(BASE) | {"video": _portrait_to_video()}
    cases = {
        f"{label} {name} of {class_type}": Case(
            chain
            | {"tested": node(class_type, **GOOD[class_type]["inputs"] | {name: value})}
            | ({} if class_type == "MagicDistillSaveVideo" else {"shown": _shown("tested")}),
            name.partition("_")[0],
        )
        for class_type, name in (
            ("MagicDistillLoadLora", "strength"),
            ("MagicDistillRealFakeLora", "weight_real"),
            ("MagicDistillRealFakeLora", "weight_fake"),
            ("MagicDistillSigmas", "shift"),
            ("MagicDistillSampler", "shift"),
            ("MagicDistillPortraitToVideo", "seconds"),
            ("MagicDistillSaveVideo", "fps"),
            ("MagicDistillSaveVideo", "crf"),
            ("MagicDistillLongVideo", "seconds"),
            ("MagicDistillLongVideo", "shift"),
            ("MagicDistillLongVideo", "crf"),
            ("MagicDistillLongVideo", "max_color_drift"),
            ("MagicDistillLongVideo", "min_sharpness"),
            ("MagicDistillLongVideo", "min_identity"),
        )
        for label, value in (("NaN", _NAN), ("text NaN", "nan"), ("infinite", "inf"))
    }
    for name, value in (("width", 50), ("height", 50), ("width", 8), ("width", 24), ("height", 8), ("height", 500)):
        video = _portrait_to_video(**{name: value})
        cases[f"{name} of {value}"] = Case(chain | {"video": video, "shown": _shown("video")}, str(value))
    for label, text in STRENGTHS.items():
        steps = node("MagicDistillLoraSteps", **GOOD["MagicDistillLoraSteps"]["inputs"] | {"strengths": text})
        cases[f"strengths: {label}"] = Case(chain | {"tested": steps, "shown": _shown("tested")}, "strengths")
    return cases


STRENGTHS: dict[str, Any] = {
    "empty": "",
    "blank": "  ",
    "a comma": ",",
    "words": "one, two",
    "half a number": "1, 0.5x",
    "nan": "nan",
    "infinite": "1, inf",
    "minus infinite": "-inf",
    "too strong": "1, 11",
    "too weak": "-10.5",
    "a formula": "1/2",
    "a list": "[1, 0]",
    "full-width comma": "1\uff0c0",
    "a NUL": "1\x00",
    "hexadecimal": "0x1",
    "code": "__import__('os').system('x')",
    "long": "x" * 10_000,
    "two points": "1.0.0",
}


_ATTACKS = ("parent", "backslash parent inside", "absolute", "drive", "network", "empty", "NUL", "line feed")


def bad_prefixes(canary: str) -> dict[str, Case]:
    """Return prefixes outside the output folder, and names that no file can have."""
    prefixes = {
        "parent": "../outside",
        "parents": "../../../../outside",
        "parent inside": "a/../../outside",
        "parent at the end": "a/..",
        "parent alone": "..",
        "backslash parent": "..\\outside",
        "backslash parent inside": "a\\..\\..\\outside",
        "mixed slashes": "a/..\\..\\outside",
        "absolute": f"{canary}/outside",
        "absolute twice": f"/{canary}/outside",
        "root": "/",
        "drive": "C:\\outside",
        "drive, slash": "c:/outside",
        "drive, relative": "C:outside",
        "network": "\\\\server\\share\\outside",
        "network, slash": "//server/share/outside",
        "device": "\\\\.\\pipe\\outside",
        "empty": "",
        "blank": "   ",
        "point": ".",
        "point and slash": "./",
        "NUL": "a\x00b",
        "NUL and parent": "a\x00/../../outside",
        "line feed": "a\nb",
        "carriage return": "a\rb",
        "tab": "a\tb",
        "escape": "a\x1b[2Jb",
        "delete": "a\x7fb",
        "right to left": "a\u202egpj.exe",
        "zero width": "a\u200bb",
        "byte order mark": "\ufeffa",
        "line separator": "a\u2028b",
        "lone surrogate": "a\ud800b",
        "long name": "x" * 300,
        "long wide name": "\u5b57" * 120,
        "long folder": "x" * 300 + "/y",
        "long path": "/".join(["abcdefgh"] * 600).lstrip("/"),
    }
    return (
        {
            f"prefix: {label}": Case({"portrait": BASE["portrait"], "save": _save(filename_prefix=prefix)})
            for label, prefix in prefixes.items()
        }
        | {
            f"prefix from another node: {label}": Case(
                {
                    "portrait": BASE["portrait"],
                    "text": node("PrimitiveString", value=prefixes[label]),
                    "save": _save(filename_prefix=["text", 0]),
                }
            )
            for label in _ATTACKS
        }
        | {
            f"prefix of a long video: {label}": Case(
                BASE | {"video": _portrait_to_video(), "tested": _long(filename_prefix=prefixes[label])}
            )
            for label in _ATTACKS
        }
    )


# Names that look like attacks but are harmless, because they stay below the output folder.
HARMLESS_PREFIXES = (
    "a/./b",
    "a//b",
    "\uff0e\uff0e/x",
    "\u2025/x",
    "..\u2215x",
    "~/x",
    "$HOME/x",
    "%2e%2e/x",
    "a..b/..c",
    ".../x",
    "file:x",
    "-rf",
    "con",
)


def mismatched_connections() -> dict[str, Case]:
    """Return connections of the right types between nodes that do not belong together."""
    chain = deepcopy(BASE) | {"video": _portrait_to_video()}

    def shown(**nodes: Any) -> Prompt:
        return chain | {"shown": _shown(next(reversed(nodes)))} | nodes

    def vae_of(name: str) -> dict[str, Any]:
        return node("VAELoader", vae_name=name)

    small = _portrait_to_video(width=32)
    short = _portrait_to_video(length=5)
    latents = {
        "an image's latent": node("EmptyLatentImage", width=64, height=48, batch_size=1),
        "a larger latent": node("EmptyHunyuanLatentVideo", width=128, height=96, length=17, batch_size=1),
        "a tiny latent": node("EmptyHunyuanLatentVideo", width=16, height=16, length=17, batch_size=1),
        "an LTX latent": node("EmptyLTXVLatentVideo", width=64, height=64, length=17, batch_size=1),
        "a Mochi latent": node("EmptyMochiLatentVideo", width=64, height=48, length=19, batch_size=1),
        "a sound's latent": node("EmptyLatentAudio", seconds=1.0, batch_size=1),
        "an SD3 latent": node("EmptySD3LatentImage", width=64, height=48, batch_size=1),
    }
    boxes = {
        "right of it": (64, 0, 10, 10),
        "below it": (0, 64, 10, 10),
        "far away": (9000, 9000, 512, 512),
    }
    return {
        "VAE of Wan": Case(shown(vae=vae_of("fuzz_wan.safetensors"), video=_portrait_to_video()), "VAE"),
        "VAE of 48 channels": Case(shown(vae=vae_of("channels48.safetensors"), video=_portrait_to_video()), "48"),
        "text-to-video model": Case(shown(load=loader("channels16.safetensors"), video=_portrait_to_video())),
        "token replace for concat": Case(shown(load=loader(mode="token_replace")), "token_replace"),
        "no recipe and no size": Case(shown(load=loader("no_recipe.safetensors"), video=_portrait_to_video())),
        "no recipe and half a size": Case(
            shown(load=loader("no_recipe.safetensors"), video=_portrait_to_video(width=64, height=48))
        ),
        "no null prompt": Case(
            shown(load=loader("no_recipe.safetensors"), video=_portrait_to_video(width=64, height=48, length=5))
        ),
        "conditioning of another width": Case(
            shown(small=small, sample=_sampler(conditioning=["small", 0])), "latent pixels"
        ),
        "latent of another width": Case(shown(small=small, sample=_sampler(latent=["small", 1])), "latent pixels"),
        "concat model, conditioning of token replace": Case(
            shown(
                load2=loader("fuzz/token_replace.safetensors"),
                video2=_portrait_to_video(model=["load2", 0]),
                sample=_sampler(conditioning=["video2", 0]),
            ),
            "start image",
        ),
        "token replace model, conditioning of concat": Case(
            shown(load2=loader("fuzz/token_replace.safetensors"), sample=_sampler(model=["load2", 0])), "start image"
        ),
        "token replace model, latent of another length": Case(
            shown(
                load2=loader("fuzz/token_replace.safetensors"),
                video2=_portrait_to_video(model=["load2", 0]),
                short=short,
                sample=_sampler(model=["load2", 0], conditioning=["video2", 0], latent=["short", 1]),
            )
        ),
        **{
            f"latent: {label}": Case(shown(other=other, sample=_sampler(latent=["other", 0])))
            for label, other in latents.items()
        },
        **{
            f"face {label}": Case(
                shown(
                    box=node("PrimitiveBoundingBox", **dict(zip(("x", "y", "width", "height"), box, strict=True))),
                    video=_portrait_to_video(face=["box", 0]),
                ),
                "face box",
            )
            for label, box in boxes.items()
        },
        "fake LoRA in the LoRA loader": Case(
            shown(
                lora=node("MagicDistillLoadLora", model=["load", 0], lora_name="tiny_fake.safetensors", strength=1.0)
            ),
            "tiny_fake.safetensors",
        ),
        "odd sides": Case(
            {"portrait": node("EmptyImage", width=65, height=33, batch_size=1, color=0), "save": _save()}, "65"
        ),
        "one pixel": Case(
            {"portrait": node("EmptyImage", width=1, height=1, batch_size=1, color=0), "save": _save()}, "1 x 1"
        ),
        "a mask as frames": Case(
            {
                "mask": node("SolidMask", value=1.0, width=64, height=64),
                "save": _save(video=["mask", 0]),
            },
            "video",
        ),
    }


# Files whose damage shows only when a network is built, so Quantise accepts them.
LOADERS_CASE = {
    *("weight_too_narrow", "weight_a_vector", "bias_too_long", "channels_of_7", "integers", "truths"),
    *("int8_without_scales", "quantisation_no_json", "quantisation_unknown"),
    *("null_prompt_narrow", "null_prompt_flat", "null_prompt_without_tokens", "null_prompt_nan"),
    *("null_prompt_integers", "null_pooled_narrow", "null_pooled_flat"),
}

# Only the LoRA loader uses a LoRA's recipe and null prompt; the other nodes note the difference.
LOADERS_RECIPE = {"recipe_other_mode", "recipe_other_family"} | {
    f"null_prompt_{kind}" for kind in ("narrow", "nan", "flat")
}


def file_cases(models: list[str], loras: list[str], videos: list[str]) -> dict[str, Case]:
    """Return every bad file in every node that reads such files."""
    cases = {}
    for name in models:
        cases[f"load {name}"] = Case({"load": loader(name), "shown": _shown("load")}, name)
    for name in (name for name in models if Path(name).stem not in LOADERS_CASE):
        cases[f"quantise {name}"] = Case({"quantise": node("MagicDistillQuantise", unet_name=name)}, name)
    chain = deepcopy(BASE) | {"video": _portrait_to_video()}
    for class_type in ("MagicDistillLoadLora", "MagicDistillLoraSteps", "MagicDistillRealFakeLora"):
        for name in loras:
            if Path(name).stem in LOADERS_RECIPE and class_type != "MagicDistillLoadLora":
                continue
            tested = node(class_type, **GOOD[class_type]["inputs"] | {"lora_name": name})
            cases[f"{class_type} {name}"] = Case(chain | {"tested": tested, "shown": _shown("tested")}, name)
    for name in videos:
        cases[f"video {name}"] = Case({"file": node("LoadVideo", file=name), "save": _save(video=["file", 0])}, "video")
    return cases
