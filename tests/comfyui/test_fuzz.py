"""Hundreds of invalid inputs and files, sent to one running server.

Each ends in one clear message, the server keeps running, and nothing is written where it does not belong.
"""

import json
import re
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from magicdistill_core.families.hunyuan_video import TOKEN_REPLACE, NetworkShape
from magicdistill_core.media.video_writing import write_video

from . import bad_files, bad_prompts
from .bad_prompts import Case

OURS = re.compile(r"^MagicDistillation\.(Checkpoint|Video|Config)Error$")
# Errors of ComfyUI itself, before anything runs.
COMFYUIS = {
    "required_input_missing",
    "value_not_in_list",
    "value_smaller_than_min",
    "value_bigger_than_max",
    "invalid_input_type",
    "return_type_mismatch",
    "custom_validation_failed",
}
INTERNALS = re.compile(
    r"Traceback|NoneType|has no attribute|positional argument|keyword argument|mat1|size mismatch|shape '|broadcast"
    r"|Sizes of tensors|KeyError|IndexError|object is not|expected scalar|torch\.Size|line \d+, in "
)
ADVICE = re.compile(
    r"\b(use|load|connect|choose|set|copy|convert|export|update|check|save|write|gather|crop|name|download)\b", re.I
)
LENGTHS = range(40, 1000)


@pytest.fixture(scope="module")
def bad_models(server: Any, tiny: SimpleNamespace, canary: Path) -> Iterator[dict[str, list[str]]]:
    """Write the bad files into the server's folders; return their names by kind, as the nodes list them."""
    models, runs_code = server.directory / "models", str(canary / "ran")
    recipe = tiny.recipe("generator")
    said = json.loads(recipe.model_dump_json(exclude_none=True))
    base = models / "diffusion_models" / "fuzz"
    tiny.write_model(
        base / "small.safetensors", tiny.network(NetworkShape(33, 128, 1, 1, 1, 32, 768, False)), recipe, tiny.prompt()
    )
    state = {key: value.to(torch.bfloat16) for key, value in load_file(base / "small.safetensors").items()}
    metadata = recipe.to_metadata()
    lora = load_file(models / "loras" / "tiny_fake.safetensors")
    lora_recipe = tiny.recipe("generator_lora")
    files = {
        base: bad_files.bad_pickles(state, runs_code)
        | bad_files.bad_recipes(said)
        | bad_files.bad_models(state, metadata)
        | _safetensors(bad_files.damaged_safetensors(save(state, metadata))),
        models / "loras" / "fuzz": bad_files.bad_pickles(lora, runs_code)
        | bad_files.bad_loras(lora, lora_recipe.to_metadata(), said | {"kind": "generator_lora"})
        | _safetensors(bad_files.damaged_safetensors(save(lora))),
        server.directory / "input": bad_files.bad_videos(_video(server.directory / "good.mp4")),
    }
    written = []
    for folder, contents in files.items():
        folder.mkdir(exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
            written.append(folder / name)
    # Valid files that do not fit each other.
    token_replace = tiny.recipe("generator", i2v_mode="token_replace")
    network = tiny.network(tiny.shape(in_channels=16), TOKEN_REPLACE)
    tiny.write_model(base / "token_replace.safetensors", network, token_replace, tiny.prompt())
    save_file(state | {"img_in.proj.bias": torch.full((128,), float("nan"))}, base / "nan.safetensors", metadata)
    save_file(lora, models / "loras" / "fuzz" / "plain.safetensors")
    # ComfyUI distinguishes Wan's VAE from HunyuanVideo's by the number type.
    vae = load_file(models / "vae" / "tiny_vae.safetensors")
    save_file({key: value.float() for key, value in vae.items()}, models / "vae" / "fuzz_wan.safetensors")
    extra = [base / "small.safetensors", base / "token_replace.safetensors", base / "nan.safetensors"]
    extra += [models / "loras" / "fuzz" / "plain.safetensors", models / "vae" / "fuzz_wan.safetensors"]
    diffusion, loras, videos = (list(contents) for contents in files.values())
    yield {
        "models": [f"fuzz/{name}" for name in diffusion],
        "loras": [f"fuzz/{name}" for name in loras],
        "videos": videos,
    }
    for path in (*written, *extra):
        path.unlink()


def _safetensors(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.safetensors": content for name, content in files.items()}


def _video(path: Path) -> bytes:
    write_video(path, torch.zeros(5, 32, 32, 3, dtype=torch.uint8), 8.0)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture(scope="module")
def canary(server: Any) -> Path:
    """Create a folder next to the server's, which no case may change."""
    folder = server.directory.parent / "canary"
    folder.mkdir()
    (folder / "here").write_text("untouched")
    return folder


@pytest.fixture(scope="module")
def cases(server: Any, bad_models: dict[str, list[str]], canary: Path) -> dict[str, dict[str, Case]]:
    """Return every case, by group."""
    info = server.get("/object_info")
    schemas = {name: schema for name, schema in info.items() if name.startswith("MagicDistill")}
    return {
        "values": bad_prompts.wrong_values(schemas),
        "numbers": bad_prompts.wrong_numbers(),
        "prefixes": bad_prompts.bad_prefixes(str(canary)),
        "connections": bad_prompts.mismatched_connections(),
        "files": bad_prompts.file_cases(**bad_models),
    }


@pytest.fixture
def untouched(server: Any, canary: Path) -> Iterator[None]:
    """Check that no file appears, changes or vanishes in the server's folders or next to them."""

    def state() -> dict[str, tuple[int, int]]:
        own = (server.directory / "user", server.directory / "temp", server.log)
        return {
            str(path): (path.stat().st_size, path.stat().st_mtime_ns)
            for folder in (server.directory, canary, *server.directory.parent.glob("outside*"))
            for path in sorted(folder.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts and not any(path.is_relative_to(o) for o in own)
        }

    before = state()
    yield
    assert state() == before


def message_of(server: Any, case: Case) -> Callable[[], str | None]:
    """Queue a case; return a function that waits for it and reports what is wrong with its message."""
    try:
        prompt_id = server.queue(case.prompt)
    except urllib.error.HTTPError as refused:
        answer = json.loads(refused.read())
        return lambda: _wrong_refusal(answer, case)
    return lambda: _wrong_error(server.wait(prompt_id), case)


def _wrong_refusal(answer: Mapping[str, Any], case: Case) -> str | None:
    errors = [error for node in (answer["node_errors"] or {}).values() for error in node["errors"]]
    text = "; ".join(f"{error['type']}: {error['message']} | {error['details']}" for error in errors)
    clear = errors and all(error["type"] in COMFYUIS for error in errors) and case.names in text
    return None if clear else f"refused with {text or answer['error']}"


def _wrong_error(entry: Mapping[str, Any], case: Case) -> str | None:
    messages = dict(entry["status"]["messages"])
    if "execution_error" not in messages:
        return "no error"
    error = messages["execution_error"]
    text, kind = error["exception_message"].strip(), error["exception_type"]
    name = Path(case.names).name
    wrong = {
        "type": not OURS.search(kind),
        "length": len(text) not in LENGTHS,
        "more than a paragraph": "\n" in text,
        "internals": bool(INTERNALS.search(text)),
        "no advice": not ADVICE.search(text.replace(name, "")),
        f"does not name {name}": name not in text,
    }
    found = [label for label, holds in wrong.items() if holds]
    return f"{', '.join(found)}: {kind}: {text}" if found else None


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("group", ["values", "numbers", "prefixes", "connections", "files"])
def test_every_bad_case_ends_in_a_clear_message(group: str, cases: dict[str, dict[str, Case]], server: Any) -> None:
    # Queue all cases before waiting for the first answer.
    questions = {name: message_of(server, case) for name, case in cases[group].items()}
    wrong = {name: said for name, ask in questions.items() if (said := ask()) is not None}
    assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong.items())
    assert server.get("/system_stats"), "the server is gone"


def test_there_are_at_least_700_cases(cases: dict[str, dict[str, Case]]) -> None:
    assert sum(len(group) for group in cases.values()) >= 700
    assert all(len(group) >= 20 for group in cases.values())


@pytest.mark.usefixtures("bad_models")
def test_names_that_only_look_bad_stay_in_the_output_folder(server: Any, canary: Path) -> None:
    output = (server.directory / "output").resolve()
    for prefix in bad_prompts.HARMLESS_PREFIXES:
        save = bad_prompts.GOOD["MagicDistillSaveVideo"]
        prompt = {
            "portrait": bad_prompts.BASE["portrait"],
            "save": {**save, "inputs": save["inputs"] | {"filename_prefix": f"harmless/{prefix}"}},
        }
        (entry,) = server.run(prompt)["save"]["images"]
        path = (output / entry["subfolder"] / entry["filename"]).resolve()
        assert path.is_relative_to(output / "harmless")
        assert path.stat().st_size > 0
    assert [path.name for path in canary.iterdir()] == ["here"]


@pytest.mark.usefixtures("bad_models")
def test_nan_weights_are_reported_when_the_video_is_saved(server: Any) -> None:
    chain = {
        **bad_prompts.BASE,
        "load": bad_prompts.loader("fuzz/nan.safetensors"),
        "video": bad_prompts.GOOD["MagicDistillPortraitToVideo"],
        "sample": bad_prompts.GOOD["MagicDistillSampler"],
        "decode": bad_prompts.node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "save": bad_prompts.node(
            "MagicDistillSaveVideo",
            **bad_prompts.GOOD["MagicDistillSaveVideo"]["inputs"]
            | {"video": ["decode", 0], "filename_prefix": "harmless/nan"},
        ),
    }
    (text,) = server.run(chain)["save"]["text"]
    assert re.search("17 of 17 frames .*NaN", text)
