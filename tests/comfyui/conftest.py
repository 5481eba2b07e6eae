"""Fixtures for a real ComfyUI: its folder, tiny files, and one running server for all tests."""

import json
import os
import shlex
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from playwright.sync_api import sync_playwright
from safetensors.torch import load_file, save_file

from magicdistill_core.branch import LowRank
from magicdistill_core.checkpoint import save_checkpoint
from magicdistill_core.families.base import Family, NullPrompt
from magicdistill_core.families.hunyuan_video import CONCAT, CONCAT_CHANNELS, TEXT_ONLY, NetworkShape
from magicdistill_core.hashes import file_sha256
from magicdistill_core.layouts.hunyuan_video import HUNYUAN_VIDEO
from magicdistill_core.layouts.lora import to_file_layout
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.lora_file import save_lora
from magicdistill_core.recipe import METADATA_KEY, Recipe
from magicdistill_core.taehv import TAEHV
from tests.makers import random_prompt as makers_prompt
from train.comfyui.server import prepare_directory, serve
from train.networks.network import build_network

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
RANK, ALPHA = 4, 8.0
LORA_MODULES = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_k",
    "transformer_blocks.0.attn.to_v",
    "transformer_blocks.0.attn.to_out.0",
    "transformer_blocks.0.attn.add_k_proj",
    "transformer_blocks.0.attn.to_add_out",
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff_context.net.2",
    "single_transformer_blocks.1.attn.to_q",
    "single_transformer_blocks.1.attn.to_v",
    "single_transformer_blocks.1.proj_mlp",
    "single_transformer_blocks.1.proj_out",
)


def tiny_recipe(kind: str, **changes: object) -> Recipe:
    """Return a recipe for 17 frames of 64 x 48 pixels."""
    fields = {"kind": kind, "steps": 4, "shift": 5.0, "width": 64, "height": 48, "frames": 17, "fps": 8.0}
    return Recipe.model_validate(fields | changes)


def tiny_shape(hidden: int = 128, guidance_embed: bool = False, in_channels: int = CONCAT_CHANNELS) -> NetworkShape:
    """Return the sizes of a network with two double, two single and two refiner blocks."""
    return NetworkShape(in_channels, hidden, 2, 2, 2, 32, 768, guidance_embed)


def random_network(shape: Any, family: Family = CONCAT, seed: int = 0) -> torch.nn.Module:
    """Return a network with random weights, biases and norms, so no path through it is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(shape, family)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, 0.1 if parameter.ndim == 1 else 0.0, 0.08)
    return network.eval()


def random_prompt() -> NullPrompt:
    """Return a null prompt of five tokens."""
    generator = torch.Generator().manual_seed(5)
    return NullPrompt(torch.randn(1, 5, 32, generator=generator), torch.randn(1, 768, generator=generator))


def random_branches(network: torch.nn.Module) -> dict[str, LowRank]:
    """Return LoRA branches for some diffusers-named modules, with q, k and v split and incomplete."""
    generator = torch.Generator().manual_seed(9)
    branches = {}
    for name in LORA_MODULES:
        out, width = network.get_submodule(name).weight.shape
        down = torch.randn(RANK, width, generator=generator) * 0.1
        branches[name] = LowRank(down, torch.randn(out, RANK, generator=generator) * 0.1, ALPHA)
    return branches


def write_model(path: Path, network: torch.nn.Module, recipe: Recipe, prompt: NullPrompt | None) -> None:
    """Write the network in the file layout."""
    save_checkpoint(path, diffusers_to_file(HUNYUAN_VIDEO, network.state_dict()), recipe, prompt)


def write_lora(path: Path, branches: dict[str, LowRank], hidden: int, base: Path | None = None) -> None:
    """Write the branches as a fake LoRA file, with q, k and v fused."""
    recipe = tiny_recipe("fake_lora", base_hash=file_sha256(base) if base else None)
    save_lora(path, to_file_layout(HUNYUAN_VIDEO, branches, hidden), recipe)


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """Return the functions above; a fixture, because test modules cannot import from here."""
    return SimpleNamespace(
        branches=random_branches,
        network=random_network,
        prompt=random_prompt,
        recipe=tiny_recipe,
        shape=tiny_shape,
        write_lora=write_lora,
        write_model=write_model,
    )


class Client:
    """An API client of a ComfyUI server, with access to the server's folders."""

    def __init__(self, address: str, directory: Path, log: Path) -> None:
        self.address = address
        self.directory = directory
        self.log = log

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict) -> Any:
        request = urllib.request.Request(
            f"{self.address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def refusal_of(self, prompt: dict) -> dict:
        """Return the server's answer to a prompt that it must refuse to queue."""
        with pytest.raises(urllib.error.HTTPError) as refused:
            self.queue(prompt)
        return json.loads(refused.value.read())

    def queue(self, prompt: dict, workflow: dict | None = None) -> str:
        """Queue an API-format prompt and return its id."""
        body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": workflow}} if workflow else {}}
        return self.post("/prompt", body)["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 240) -> dict:
        """Wait for the end of a prompt and return its history entry."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return entry
            time.sleep(0.2)
        pytest.fail(f"the prompt did not end within {seconds:.0f} s")

    def run(self, prompt: dict, workflow: dict | None = None) -> dict:
        """Run a prompt, which must succeed, and return its outputs by node."""
        entry = self.wait(self.queue(prompt, workflow))
        event, data = entry["status"]["messages"][-1]
        assert entry["status"]["status_str"] == "success", f"{event}: {data.get('exception_message')}"
        return entry["outputs"]

    def error_of(self, prompt: dict) -> dict:
        """Run a prompt, which must fail while it runs, and return its error."""
        messages = dict(self.wait(self.queue(prompt))["status"]["messages"])
        assert "execution_error" in messages, f"no error but {list(messages)}"
        return messages["execution_error"]


@pytest.fixture(scope="session")
def client() -> type[Client]:
    """Return the class above, for tests that start their own server."""
    return Client


@pytest.fixture(scope="session")
def tiny_models(tiny: SimpleNamespace) -> Callable[[Path], None]:
    """Return a function that writes the server's tiny files into another folder `models`."""
    return lambda models: _write_models(models, tiny)


@pytest.fixture(scope="session")
def server(comfyui_dir: Path, tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Run one ComfyUI with the pack, and with valid and bad tiny models in its folders.

    The environment variable COMFYUI_OPTIONS holds more start options, such as `--front-end-root FOLDER`.
    """
    directory = tmp_path_factory.mktemp("comfyui")
    prepare_directory(directory)
    _write_models(directory / "models", tiny)
    log = directory / "server.log"
    options = shlex.split(os.environ.get("COMFYUI_OPTIONS", ""))
    with log.open("wb") as output, serve(comfyui_dir, directory, log=output, options=options) as running:
        yield Client(running.address, directory, log)


@pytest.fixture(scope="session")
def page(skip_or_fail: Callable[[str, str], NoReturn], server: Client) -> Iterator[Any]:
    """Open one page of the running ComfyUI for all tests and close the greeting of a first visit."""
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        skip_or_fail("chromium", f"there is no browser on this machine, none of {', '.join(BROWSERS)}")
    server.post("/settings", {"Comfy.TutorialCompleted": True})
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1800, "height": 1000})
        page.goto(server.address)
        page.get_by_role("button", name="Templates").first.wait_for(timeout=120_000)
        # Wait for the first graph, which the page loads last and which would replace a test's graph.
        page.wait_for_function("window.app?.graph?.nodes.length > 0", timeout=120_000)
        yield page
        browser.close()


def _write_models(models: Path, tiny: SimpleNamespace) -> None:
    network, prompt, recipe = tiny.network(tiny.shape()), tiny.prompt(), tiny.recipe("generator")
    folder = models / "diffusion_models"
    good = folder / "tiny.safetensors"
    tiny.write_model(good, network, recipe, prompt)
    told = {"speaks": makers_prompt(4, 32, seed=1), "nods": makers_prompt(4, 32, seed=2)}
    weights = {k: v for k, v in load_file(good).items() if not k.startswith("null_prompt.")}
    save_checkpoint(folder / "told.safetensors", weights, recipe, prompt, captions=told)
    state, metadata = load_file(good), recipe.to_metadata()
    plain = {key: tensor for key, tensor in state.items() if not key.startswith("null_prompt.")}
    save_file(plain, folder / "no_recipe.safetensors")
    save_file(state, folder / "strange_recipe.safetensors", {METADATA_KEY: '{"format_version": 1, "flux": 2}'})
    newer = json.dumps(json.loads(metadata[METADATA_KEY]) | {"solver_order": 3})
    save_file(state, folder / "newer_recipe.safetensors", {METADATA_KEY: newer})
    t2v = random_network(tiny_shape(in_channels=16), TEXT_ONLY)
    tiny.write_model(folder / "channels16.safetensors", t2v, recipe, prompt)
    save_file({"blocks.0.weight": torch.zeros(4, 4)}, folder / "other_family.safetensors", metadata)
    null = {key: tensor for key, tensor in state.items() if key.startswith("null_prompt.")}
    save_file(network.state_dict() | null, folder / "diffusers_names.safetensors", metadata)
    quantised, layers = _quantised(state)
    save_file(quantised, folder / "quantised.safetensors", metadata | {"_quantization_metadata": json.dumps(layers)})
    incomplete = {key: tensor for key, tensor in state.items() if "double_blocks.1.img_attn_qkv" not in key}
    save_file(incomplete, folder / "incomplete.safetensors", metadata)
    (folder / "truncated.safetensors").write_bytes(good.read_bytes()[:-1000])
    torch.save({"state_dict": plain, "code": PurePosixPath("x")}, folder / "pickle.pt")
    torch.save(plain, folder / "renamed_pickle.safetensors")
    branches = tiny.branches(network)
    tiny.write_lora(folder / "lora_as_model.safetensors", branches, 128)
    loras = models / "loras"
    tiny.write_lora(loras / "tiny_fake.safetensors", branches, 128, base=good)
    tiny.write_lora(loras / "other_base.safetensors", branches, 128, base=folder / "no_recipe.safetensors")
    tiny.write_lora(loras / "wide.safetensors", tiny.branches(tiny.network(tiny.shape(256))), 256)
    stranger = {"unet.mid.lora_A.weight": torch.zeros(4, 8), "unet.mid.lora_B.weight": torch.zeros(8, 4)}
    save_file(stranger, loras / "stranger.safetensors")
    save_file(_vae(), models / "vae" / "tiny_vae.safetensors")
    save_file(_vae(latents=48, patch=2), models / "vae" / "channels48.safetensors")


def _quantised(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the wide layers of the single blocks in fp8 with one scale each, and ComfyUI's metadata for them."""
    out, layers = dict(state), {}
    for name in [key.removesuffix(".weight") for key in state if ".linear1.weight" in key]:
        scale = state[f"{name}.weight"].abs().max() / 448
        out[f"{name}.weight"] = (state[f"{name}.weight"] / scale).to(torch.float8_e4m3fn)
        out[f"{name}.weight_scale"] = scale.float()
        layers[name] = {"format": "float8_e4m3fn"}
    return out, {"format_version": "1.0", "layers": layers}


def _vae(latents: int = 16, patch: int = 1) -> dict[str, torch.Tensor]:
    """Return a TAEHV-layout VAE with random weights in fp16, by which ComfyUI recognises HunyuanVideo's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = TAEHV().state_dict()
        last = max(int(key.split(".")[1]) for key in state if key.startswith("encoder."))
        pixels = 3 * patch**2
        state["encoder.0.weight"] = torch.randn(64, pixels, 3, 3) * 0.1
        state[f"encoder.{last}.weight"] = torch.randn(latents, 64, 3, 3) * 0.1
        state[f"encoder.{last}.bias"] = torch.zeros(latents)
        state["decoder.1.weight"] = torch.randn(256, latents, 3, 3) * 0.05
        state["decoder.22.weight"], state["decoder.22.bias"] = torch.randn(pixels, 64, 3, 3) * 0.1, torch.zeros(pixels)
    return {key: value.half().contiguous() for key, value in state.items()}
