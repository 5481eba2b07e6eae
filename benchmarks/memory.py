"""Write `docs/memory.md`: the memory of training on each GPU, per preset, computed at full sizes on any machine."""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file

import train
from magicdistill_core.families.base import Family, NullPrompt
from magicdistill_core.families.hunyuan_video import CONCAT
from magicdistill_core.families.wan import IMAGE_TO_VIDEO, WanShape
from magicdistill_core.layouts.modules import diffusers_to_file
from magicdistill_core.null_prompt import null_prompt_tensors
from magicdistill_core.recipe import Recipe
from magicdistill_core.streamed import Space, StreamedFile
from train.config.reading import load_config
from train.config.training import TrainConfig
from train.data.dataset_index import sample_shapes
from train.distributed import prepare_environment
from train.engines.teacher import load_teacher
from train.networks.network import build_network

from .cases.iteration import ONE_GPU, PRESET
from .harness import GB, Row
from .runs import Document, together, with_true_peaks
from .sizes import FULL_SIZES, HUNYUAN_13B, Clip
from .tables import table

logger = logging.getLogger(__name__)

_WAN_14B = WanShape(in_channels=36, hidden=5120, mlp=13824, blocks=40, text_dim=4096, frequencies=256)
_INTRODUCTION = """# Memory of a training

`python -m benchmarks memory` writes this page; it needs no GPU. `magicdistill memory CONFIG --gpus N` computes the
same numbers for any configuration, teacher and clip length, before you rent a GPU:

    uv run magicdistill memory train/presets/hunyuan_i2v_w2s_4step_lora.yaml model.teacher=HUNYUAN \\
        --gpus 8 --frames 129 --height 544 --width 960

The numbers come from the trainer's own code. It builds the networks with their branches and makes one update of each
trained network. The tensors have shapes but no data, and every allocation is counted. DeepSpeed's part is computed:
how it divides weights, gradients and optimizer states, and its buffers at their usual sizes. Captions have the most
tokens that the teacher's text encoders make: 544 for HunyuanVideo and Magic 1-For-1 with the start image, 512 for Wan.

The numbers do not include CUDA itself, the VAE that decodes validation samples, or memory that the allocator cannot
use. Leave a few GB for them. GB are 10^9 bytes; a GPU sold as 80 GB has 85.

`update` is the additional memory of the most expensive update: of its network calls, or of the optimizer's step if that
takes more. `in all` is the sum of `weights` to `update`. `at the start` is the memory of the networks before DeepSpeed
divides them.
"""


@dataclass(frozen=True)
class Case:
    """A preset, with the number of GPUs, the clips to compute it for, and settings that replace those of the preset."""

    preset: str
    gpus: int
    clips: tuple[Clip, ...] = (FULL_SIZES.usual, FULL_SIZES.longest)
    overrides: tuple[str, ...] = ()


CASES = (
    Case("hunyuan_i2v_w2s_4step_lora", 1),
    Case("hunyuan_i2v_w2s_4step_lora", 8),
    Case("hunyuan_i2v_w2s_4step_lora", 8, (FULL_SIZES.longest,), ("context_parallel=8",)),
    Case("hunyuan_i2v_w2s_4step", 8),
    Case("hunyuan_i2v_w2s_4step_paper", 8),
    Case("hunyuan_i2v_dmd_4step", 8),
    Case("hunyuan_i2v_dmd2_4step", 8),
    Case("hunyuan_i2v_dmd2_4step", 8, (FULL_SIZES.longest,), ("context_parallel=2",)),
    Case("hunyuan_i2v_dmd2_4step", 16, (FULL_SIZES.longest,)),
    Case("hunyuan_i2v_supervised_4step", 40),
    Case("hunyuan_i2v_one_step", 16),
    Case("hunyuan_i2v_lcm_4step", 8),
    Case("hunyuan_i2v_cfg", 8),
    Case("hunyuan_i2v_sft", 8),
    Case("magic141_w2s_4step", 16),
    Case("hunyuan_ti2v_w2s_4step", 8),
    Case("magic141_ti2v_w2s_4step", 40),
    Case("wan_i2v_w2s_4step", 8, (Clip(81, 480, 832),)),
    Case("wan_ti2v_w2s_4step", 8, (Clip(81, 480, 832),)),
)


class Files:
    """Sparse weights files of full size without data: HunyuanVideo-I2V 13B and Wan 2.1 I2V 14B.

    They take almost no space on the disk.
    """

    def __init__(self, folder: Path) -> None:
        self.hunyuan = folder / "hunyuan.safetensors"
        self.wan = folder / "wan.safetensors"
        self.prompt = folder / "prompt.safetensors"
        _write(self.hunyuan, HUNYUAN_13B, CONCAT)
        _write(self.wan, _WAN_14B, IMAGE_TO_VIDEO)
        text = torch.zeros(1, FULL_SIZES.text_tokens, HUNYUAN_13B.text_dim)
        save_file(null_prompt_tensors(NullPrompt(text, torch.zeros(1, HUNYUAN_13B.pooled_dim))), self.prompt)

    def settings(self, preset: str, *overrides: str) -> TrainConfig:
        """Load a preset with these files as teacher, prompts and few-step generator."""
        wan = preset.startswith("wan")
        file = self.wan if wan else self.hunyuan
        settings = [f"model.teacher={file}", f"model.null_prompt={self.prompt}", *overrides]
        path = Path(train.__file__).parent / "presets" / f"{preset}.yaml"
        method = load_config(path).method
        if method.uses_negative_prompt:
            settings.append(f"model.negative_prompt={self.prompt}")
        if method.start_file is not None:
            settings.append(f"method.few_step_generator={file}")
        return load_config(path, settings)


def _write(path: Path, shape: Any, family: Family) -> None:
    with init_empty_weights():
        network = build_network(shape, family)
    weights = diffusers_to_file(family.architecture.layout, network.state_dict())
    spaces = {key: Space(torch.bfloat16, tuple(value.shape)) for key, value in weights.items()}
    # The recipe of a generator: the file can be a teacher, and also the few-step generator of one-step distillation.
    recipe = Recipe(
        kind="generator", family=family.architecture.name, i2v_mode=family.i2v_mode, steps=4, shift=5.0, width=960,
        height=544, frames=129, fps=24,
    )  # fmt: skip
    with open(path, "wb") as file:
        StreamedFile(file, spaces, recipe.to_metadata())


def computed(config: TrainConfig, clip: Clip, gpus: int) -> Row:
    """Compute one row of the page.

    Args:
        config: the training.
        clip: the size of the training clips.
        gpus: the number of GPUs that DeepSpeed divides the state over.

    Returns:
        GB per GPU by column.
    """
    from train.memory.training import memory_of

    teacher = load_teacher(config, "meta")
    shapes = sample_shapes(teacher.checkpoint.architecture.name, clip.frames, clip.height, clip.width)
    found = memory_of(config, teacher, shapes, gpus)
    parts = {
        "weights": found.weights,
        "optimizer": found.optimizer,
        "gradients": found.gradients,
        "buffers": found.buffers,
        "update": max(*found.updates.values(), found.step),
        "in all": found.total,
        "at the start": found.start,
    }
    return {name: size / GB for name, size in parts.items()}


def rows_of_cases(files: Files, compute: Callable[[TrainConfig, Clip, int], Row]) -> list[Row]:
    """Return the rows of all presets.

    Args:
        files: teachers without data.
        compute: computes the columns of a row from a configuration, the size of its clips, and the number of GPUs.
    """
    rows = []
    for case in CASES:
        for clip in case.clips:
            name = " ".join([case.preset, *case.overrides])
            logger.info("%s, %d GPUs, %s", name, case.gpus, clip.name)
            row = compute(files.settings(case.preset, *case.overrides), clip, case.gpus)
            rows.append({"case": name, "GPUs": case.gpus, "clips": clip.name} | row)
    return rows


def memory_page(documents: Sequence[Document]) -> str:
    """Return the page: the memory per preset, then computed next to measured memory.

    Args:
        documents: the results of all benchmark runs.
    """
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        rows = rows_of_cases(files, computed)
        checks = list(_checks(files, documents))
    lines = [_INTRODUCTION, *table(rows), "", "## Computed and measured", "", _CHECKED, *table(checks), ""]
    return "\n".join(lines)


_CHECKED = """The table compares computed memory with [measured](performance.md) memory on one GPU in mode `lora`.
"One call" is one forward and backward of the network with attention kept. It runs outside of DeepSpeed, so its memory
does not include DeepSpeed's buffers.
"""


def _checks(files: Files, documents: Sequence[Document]) -> Iterator[Row]:
    settings = files.settings(PRESET.stem, *ONE_GPU)
    for clip in (FULL_SIZES.small, FULL_SIZES.medium, FULL_SIZES.longest):
        found = computed(settings, clip, 1)["in all"]
        yield {"case": clip.name} | _compared(found, documents, f"{clip.name}: fake update, exit at the first node")
    usual = FULL_SIZES.usual
    found = computed(files.settings(PRESET.stem, *ONE_GPU, "model.keep_attention=true"), usual, 1)
    bare = found["weights"] + found["optimizer"] + found["update"]
    yield {"case": f"{usual.name}: one call"} | _compared(bare, documents, f"{usual.name}: backward, attention kept")


def _compared(found: float, documents: Sequence[Document], case: str) -> Row:
    try:
        peak = together(with_true_peaks(documents), "iteration", case)[0]["peak_gb"]
    except LookupError:
        return {"computed GB": found}
    return {"computed GB": found, "measured GB": peak, "computed / measured": found / peak}
