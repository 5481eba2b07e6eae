"""Compare our sampler node with ComfyUI's stock sampler; runs in a process that imports ComfyUI.

Usage: comfyui_side.py COMFYUI JOB.json. `cases/sampling.py` writes the job; the rows go to the file that its field
`rows` names.
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

PACK = Path(__file__).resolve().parents[1]


def load_pack() -> ModuleType:
    """Import the pack's nodes as ComfyUI does: by file path, under a name that is not on sys.path."""
    spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = module
    spec.loader.exec_module(module)
    return importlib.import_module("pack.nodes")


def run_node(node: Any, **inputs: object) -> tuple[Any, ...]:
    """Run a node through ComfyUI's own wrapper and return its outputs."""
    outputs: tuple[Any, ...] = node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs).result
    return outputs


def measure(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Run both samplers on the same loaded model from the same noise, and compare time and results.

    Args:
        job: the content of the job file: `model`, `latent` (shape), `steps`, `shift`, `repeats`.

    Returns:
        One row per sampler.
    """
    import comfy.ldm.modules.attention
    import comfy.samplers
    import comfy.utils
    import folder_paths
    from comfy_extras.nodes_custom_sampler import Guider_Basic, Noise_RandomNoise, SamplerCustomAdvanced

    from benchmarks.harness import Bench

    nodes = load_pack()
    sigmas_of = importlib.import_module("pack.magicdistill_core.flow").few_step_sigmas
    attached_to = importlib.import_module("pack.nodes.attachments").attached_to
    comfy.utils.set_progress_bar_enabled(False)
    path = Path(job["model"])
    folder_paths.add_model_folder_path("diffusion_models", str(path.parent))
    (model,) = run_node(nodes.LoadModel, unet_name=path.name, weight_dtype="default", start_image_mode="from the file")

    generator = torch.Generator().manual_seed(1)
    shape = tuple(job["latent"])
    image = torch.randn(1, shape[1], 1, *shape[3:], generator=generator)
    mask = torch.ones(1, 1, *shape[2:])
    mask[:, :, :1] = 0
    prompt = attached_to(model).null_prompt
    values = {"pooled_output": prompt.pooled, "concat_latent_image": image, "concat_mask": mask}
    conditioning = [[prompt.text_states, values]]
    latent = {"samples": torch.zeros(shape)}
    results: dict[str, torch.Tensor] = {}

    def ours() -> None:
        settings = {"seed": 0, "steps": 0, "shift": 0.0, "sampler": "recipe"}
        out, _ = run_node(nodes.FewStepSampler, model=model, conditioning=conditioning, latent=latent, **settings)
        results["ours"] = out["samples"]

    def stock() -> None:
        guider = Guider_Basic(model)
        guider.set_conds(conditioning)
        out = run_node(
            SamplerCustomAdvanced,
            noise=Noise_RandomNoise(0),
            guider=guider,
            sampler=comfy.samplers.sampler_object("euler"),
            sigmas=sigmas_of(job["steps"], job["shift"]),
            latent_image=latent,
        )
        results["stock"] = out[0]["samples"]

    device = comfy.model_management.get_torch_device()
    bench = Bench(device, False, lambda row: None)
    timings = bench.compare({"stock": stock, "ours": ours}, job["repeats"])
    difference = float((results["ours"] - results["stock"]).std() / results["stock"].std())
    network = model.model
    attention = comfy.ldm.modules.attention.optimized_attention.__name__
    setting = f"{network.get_dtype()} on {device}, {attention}".replace("torch.", "")
    return [
        {"case": "stock euler sampler", **timings["stock"].row(), "note": setting},
        {
            "case": "our few-step sampler node",
            **timings["ours"].row(),
            "ratio": timings["ours"].median / timings["stock"].median,
            "relative_difference": difference,
            "note": f"{setting}; ratio to the stock sampler",
        },
    ]


def main() -> None:
    """Run the command line."""
    comfyui, job_file = sys.argv[1:3]
    # The pack comes last, because ComfyUI's own modules of the same name (`nodes`) must be found first.
    sys.path[:] = [comfyui, *[entry for entry in sys.path if Path(entry or ".").resolve() != PACK / "benchmarks"]]
    sys.path.append(str(PACK))
    sys.argv = ["main.py", *([] if torch.accelerator.is_available() else ["--cpu"])]
    import comfy.options

    comfy.options.enable_args_parsing()
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    Path(job["rows"]).write_text(json.dumps(measure(job)), encoding="utf-8")


if __name__ == "__main__":
    main()
