"""Popular packs in the same ComfyUI: neither disturbs the other.

The packs are stand-ins in `neighbours/`, which do to ComfyUI what VideoHelperSuite, KJNodes, ComfyUI-GGUF and the
wrappers of HunyuanVideo and Wan do.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from train.comfyui.server import prepare_directory, serve

from .messages import previews_of
from .prompts import PORTRAIT, SAMPLED, Prompt, changed

pytestmark = pytest.mark.slow

NEIGHBOURS = Path(__file__).with_name("neighbours")
PACKS = sorted(path.name for path in NEIGHBOURS.iterdir() if (path / "__init__.py").is_file())
OURS = "custom_nodes.magicdistillation"
SAVE = {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": "latents/neighbours"}}
PLAIN: Prompt = SAMPLED | {"save": SAVE}
LORAS: Prompt = changed({name: node for name, node in PORTRAIT.items() if name != "decode"} | {"save": SAVE})


@pytest.fixture(scope="module")
def shared_server(
    comfyui_dir: Path,
    client: Callable[[str, Path, Path], Any],
    tiny_models: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Run one ComfyUI with this pack and all neighbours."""
    directory = tmp_path_factory.mktemp("neighbours")
    prepare_directory(directory)
    for pack in PACKS:
        (directory / "custom_nodes" / pack).symlink_to(NEIGHBOURS / pack, target_is_directory=True)
    tiny_models(directory / "models")
    log = directory / "server.log"
    with log.open("wb") as output, serve(comfyui_dir, directory, log=output) as running:
        yield client(running.address, directory, log)


def latents(server: Any, prompt: Prompt) -> Tensor:
    """Run a prompt and return the latents that its node `save` has saved."""
    (entry,) = server.run(prompt)["save"]["latents"]
    return load_file(server.directory / "output" / entry["subfolder"] / entry["filename"])["latent_tensor"]


def calls(server: Any) -> Counter[str]:
    """Return how often the neighbours' functions were used; all that they changed must be in place."""
    found: Counter[str] = Counter()
    for pack in PACKS:
        state = server.get(f"/neighbours/{pack}")
        assert all(state["kept"].values()), f"{pack}: {state['kept']}"
        found.update(state["calls"])
    return found


def test_all_packs_load(shared_server: Any) -> None:
    assert "IMPORT FAILED" not in shared_server.log.read_text(errors="replace")
    modules = Counter(node["python_module"] for node in shared_server.get("/object_info").values())
    assert {f"custom_nodes.{pack}" for pack in PACKS} <= set(modules)
    assert modules["custom_nodes.attention_tools"] == 121
    assert modules[OURS] == 16
    scripts = shared_server.get("/extensions")
    for pack in ("video_tools", "attention_tools"):
        assert f"/extensions/{pack}/{pack}.js" in scripts


def test_no_name_is_used_twice(server: Any, shared_server: Any) -> None:
    nodes, alone = shared_server.get("/object_info"), server.get("/object_info")
    ours = {name for name, node in nodes.items() if node["python_module"] == OURS}
    assert all(name.startswith("MagicDistill") for name in ours)
    assert all(nodes[name]["display_name"] == alone[name]["display_name"] for name in ours)
    taken = Counter(node["display_name"] for node in nodes.values())
    assert [nodes[name]["display_name"] for name in ours if taken[nodes[name]["display_name"]] > 1] == []


def test_the_pack_adds_no_routes_of_its_own(shared_server: Any) -> None:
    routes = shared_server.get("/neighbours/routes")
    assert "/neighbours/video_tools" in routes
    ours = {route.removeprefix("/api") for route in routes if "magicdistill" in route.lower()}
    # ComfyUI itself adds these for a pack's page files and its workflows.
    assert ours == {"/extensions/magicdistillation", "/workflow_templates/magicdistillation"}, ours


@pytest.mark.parametrize("prompt", [PLAIN, LORAS], ids=["plain", "LoRAs"])
def test_neighbours_change_no_latents(prompt: Prompt, server: Any, shared_server: Any) -> None:
    expected, before = latents(server, prompt), calls(shared_server)
    found = latents(shared_server, prompt)
    assert expected.std() > 0.1
    assert torch.equal(found, expected)
    used = calls(shared_server) - before
    for name in ("attention", "execute", "send_sync", "load_models_gpu", "patch_model"):
        assert used[name] > 0, f"{name} of a neighbour was passed by"


def test_their_attention_runs_in_our_sampler(server: Any, shared_server: Any) -> None:
    patched = changed(PLAIN, sample={"model": ["patched", 0], "seed": 11}) | {
        "patched": {"class_type": "PathchSageAttentionKJ", "inputs": {"model": ["load", 0]}}
    }
    before = calls(shared_server)
    found = latents(shared_server, patched)
    assert (calls(shared_server) - before)["override"] > 0
    assert torch.equal(found, latents(server, changed(PLAIN, sample={"seed": 11})))


def test_their_loaders_model_takes_our_loras(server: Any, shared_server: Any) -> None:
    packed: Prompt = {**LORAS, "packed": {"class_type": "UnetLoaderGGUF", "inputs": {"unet_name": "tiny.safetensors"}}}
    packed = changed(packed, sample={"seed": 12, "steps": 4, "shift": 5.0})
    for node in ("lora", "strengths"):
        packed[node]["inputs"]["model"] = ["packed", 0]
    before = calls(shared_server)
    found = latents(shared_server, packed)
    assert (calls(shared_server) - before)["layers"] > 0
    torch.testing.assert_close(found, latents(server, changed(LORAS, sample={"seed": 12})), atol=1e-4, rtol=1e-4)


def test_our_previews_do_not_need_comfyuis_previewer(shared_server: Any) -> None:
    asked = {"extra_pnginfo": {"workflow": {"extra": {"VHS_latentpreview": True}}}}
    found, steps = previews_of(shared_server, changed(PLAIN, sample={"seed": 13}), "latent2rgb", asked)
    assert steps == [1, 2, 3, 4]
    assert [picture.n_frames for picture in found] == [5] * 4


def test_stock_samplers_still_use_their_previewer(shared_server: Any) -> None:
    prompt = changed(PLAIN, save={"samples": ["stock", 0]}) | {
        "stock": {
            "class_type": "KSampler",
            "inputs": {"model": ["load", 0], "positive": ["video", 0], "negative": ["video", 0]}
            | {"latent_image": ["video", 1], "seed": 3, "steps": 2, "cfg": 1.0, "sampler_name": "euler"}
            | {"scheduler": "simple", "denoise": 1.0},
        }
    }
    before = calls(shared_server)
    asked = {"extra_pnginfo": {"workflow": {"extra": {"VHS_latentpreview": True}}}}
    previews_of(shared_server, prompt, "latent2rgb", asked)
    assert (calls(shared_server) - before)["previewers"] == 1


def test_settings_that_a_neighbour_leaves_behind_change_no_latents(server: Any, shared_server: Any) -> None:
    """A node of a wrapper runs before our sampler: it unloads all models and leaves another default dtype."""
    prompt = changed(PLAIN, sample={"latent": ["wrapper", 0], "seed": 14}) | {
        "wrapper": {"class_type": "HyVideoSampler", "inputs": {"samples": ["video", 1]}}
    }
    before = calls(shared_server)
    found = latents(shared_server, prompt)
    assert (calls(shared_server) - before)["runs"] == 1
    assert torch.equal(found, latents(server, changed(PLAIN, sample={"seed": 14})))
    # The nodes before the sampler too.
    again = changed(PLAIN, portrait={"seed": 2}, sample={"seed": 15})
    assert torch.equal(latents(shared_server, again), latents(server, again))
