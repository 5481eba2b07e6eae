"""ComfyUI's nodes that patch a MODEL do the same with this pack's MODEL as with one from the stock loader.

ComfyUI 0.30 computes token replacement differently from the release, and the pack corrects it by patches of the MODEL.
There the stock side's network is corrected in its modules instead, which no node can see.
"""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from magicdistill_core.families.hunyuan_video import CONCAT, TOKEN_REPLACE
from tests.makers import StockSide, write_half_taehv

pytestmark = pytest.mark.slow

MODES = ("concat", "token_replace")
ROUTES = ("plain", "fake LoRA", "LoRA per step")
WINDOWS = ("ContextWindowsManual", "ContextWindowsManual keeping the latent", "WanContextWindowsManual")
CACHES = ("EasyCache", "LazyCache")
# HunyuanVideo's network does not read the options of ScaleROPE.
SAME_RESULT = ("ScaleROPE", "SelectModelDevice", "wanBlockSwap")
# Compiling takes seconds each time, so it is tested with the few-step sampler only.
FEW_STEP = (*CACHES, *WINDOWS, "TorchCompileModel")
# Nodes that change only how the network's results are combined.
GUIDING = (
    *("APG", "CFGNorm", "CFGZeroStar", "EpsilonScaling", "FreSca", "Mahiro", "RescaleCFG", "TCFG"),
    "TemporalScoreRescaling",
)
# Nodes that change the calls of the network, and so meet the LoRAs.
CALLING = (
    *("ModelComputeDtype", "NAGuidance", "SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple"),
    *CACHES,
    *WINDOWS,
)
Answers = dict[str, dict[str, Tensor]]
close = partial(torch.testing.assert_close, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def answers(tiny: SimpleNamespace, stock_side: StockSide, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Return the results of both sides by mode."""
    folder = tmp_path_factory.mktemp("patches")
    write_half_taehv(folder / "vae.safetensors")
    save_file({"image": torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(2))}, folder / "in.st")
    jobs = []
    for mode, family in zip(MODES, (CONCAT, TOKEN_REPLACE), strict=True):
        network = tiny.network(tiny.shape(128, True, 33 if family is CONCAT else 16), family)
        recipe = tiny.recipe("generator", embedded_guidance=6.0, i2v_mode=mode)
        tiny.write_model(folder / f"{mode}.safetensors", network, recipe, tiny.prompt())
        tiny.write_lora(folder / f"{mode}_lora.safetensors", tiny.branches(network), 128)
        files = {"model": folder / f"{mode}.safetensors", "lora": folder / f"{mode}_lora.safetensors"}
        files |= {"vae": folder / "vae.safetensors", "inputs": folder / "in.st"}
        more = {"run": "patches", "mode": mode, "seed": 5, "shift": recipe.shift}
        more |= {"calling": [*CALLING, *SAME_RESULT], "guiding": GUIDING, "few_step": FEW_STEP}
        jobs.append({name: str(file) for name, file in files.items()} | more)
    return dict(zip(MODES, stock_side(jobs), strict=True))


def pair(answers: Answers, mode: str, node: str, route: str) -> tuple[Tensor, Tensor]:
    """Return both sides' samples; skip the test if this ComfyUI has no such node."""
    try:
        return answers[mode][f"{node}/{route}/stock"], answers[mode][f"{node}/{route}/ours"]
    except KeyError:
        pytest.skip(f"this ComfyUI has no node {node}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("route", ROUTES)
def test_both_loaders_sample_the_same_without_a_node(route: str, mode: str, answers: Answers) -> None:
    stock, ours = pair(answers, mode, "none", route)
    assert stock.std() > 0.1
    close(ours, stock)
    if route != "plain":
        assert (ours - answers[mode]["none/plain/ours"]).abs().max() > 1e-2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("node", [*CALLING, *GUIDING, *SAME_RESULT])
def test_a_stock_node_does_the_same_on_both(node: str, mode: str, answers: Answers) -> None:
    for route in ROUTES[:1] if node in GUIDING else ROUTES:
        stock, ours = pair(answers, mode, node, route)
        assert stock.isfinite().all()
        if node == "ModelComputeDtype":
            # In bf16 the order of additions is visible.
            assert (ours - stock).abs().mean() < 0.02 * stock.std()
        else:
            close(ours, stock)
        effect = (ours - answers[mode][f"none/{route}/ours"]).abs().max()
        if (node, route) == ("NAGuidance", "LoRA per step"):
            # It needs both conditionings in one batch, and ComfyUI separates those with different hooks.
            continue
        assert effect < 1e-3 if node in SAME_RESULT else effect > 3e-3, f"{route}: {effect}"


@pytest.mark.parametrize("mode", MODES)
def test_the_nodes_leave_the_model_as_it_was(mode: str, answers: Answers) -> None:
    for route in ROUTES:
        close(answers[mode][f"none/{route}/afterwards"], answers[mode][f"none/{route}/ours"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("node", FEW_STEP)
def test_the_few_step_sampler_obeys_it_too(node: str, mode: str, answers: Answers) -> None:
    """Context windows are an alternative to a long video: the sampler node accepts them on both MODELs."""
    stock, ours = pair(answers, mode, node, "few steps")
    assert ours.std() > 0.1
    close(ours, stock)
    effect = (ours - answers[mode]["none/few steps/ours"]).abs().max()
    assert effect < 1e-3 if node == "TorchCompileModel" else effect > 3e-3
    said, record = (bytes(answers[mode][f"{node}/{name}"].tolist()).decode() for name in ("said", "record"))
    changes = json.loads(record)["other_changes"]
    assert changes, "the record does not name the patch"
    assert f"other nodes changed the MODEL or the CONDITIONING ({changes[0]}" in said
