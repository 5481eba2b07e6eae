"""Checks of a training's input files and of the run's folder, made before anything large is loaded."""

import hashlib
import json
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.diffusers_folder import weight_files
from magicdistill_core.errors import CheckpointError, ConfigError
from magicdistill_core.files import write_text
from magicdistill_core.null_prompt import NULL_TEXT_KEY, load_null_prompt
from magicdistill_core.recipe import MergedLora
from magicdistill_core.safetensors_file import read_header, read_metadata
from magicdistill_core.wrappers import is_pickle_name

from ..config.precision import bf16_is_fast
from ..config.training import POCKET, TrainConfig
from ..data.dataset import LatentDataset
from ..data.dataset_index import DatasetIndex
from ..distributed import available_device, barrier, beginning_together, is_main, world_size
from ..engines.teacher import load_teacher, teacher_path
from ..methods.batch_prompts import checked_texts
from ..networks.context_parallel import check_degree
from ..networks.weights import ENCODE_PROMPT
from ..run_folder import CONFIG_FILE, FOLDER, LATEST, RUN_FILE, TEACHER_LORAS, run_facts
from . import checkpoints
from .mixture import check_mixed
from .same_files import check_same, shared_sha256

_DIGEST = "dataset_digest"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a run.

    Attributes:
        teacher: path of the teacher's model file or diffusers folder.
        teacher_hash: sha256 of the teacher's weights.
        dataset: the opened dataset.
        teacher_loras: the LoRAs that are merged into the teacher.
        mixed: the opened further datasets.
    """

    teacher: Path
    teacher_hash: str
    dataset: LatentDataset
    teacher_loras: tuple[MergedLora, ...] = ()
    mixed: tuple[LatentDataset, ...] = ()


def check_inputs(config: TrainConfig, *, resume: bool) -> Inputs:
    """Check all input files of a configuration and the run's folder; a collective call.

    Args:
        config: the training's configuration.
        resume: whether the run continues; a new run needs a folder without checkpoints.

    Returns:
        The checked inputs.

    Raises:
        MagicDistillError: on every process, if one of them finds a missing or damaged file, the folder of a new run
            already contains a run, or the run to resume was started with other inputs.
    """
    with beginning_together():
        teacher, dataset = _check_files(config, resume=resume)
        mixed = tuple(LatentDataset(folder) for folder in config.data.mixed)
        check_mixed(dataset, mixed)
        if is_main() and config.model.precision == "bf16" and not bf16_is_fast(available_device()):
            logger.warning(
                "This CPU has no instructions for bf16: it may take up to 70 times as long as in fp32. Set "
                "model.precision=auto"
            )
    loras = tuple(
        MergedLora(name=lora.file.name, sha256=shared_sha256("model.teacher_loras", lora.file), weight=lora.weight)
        for lora in config.model.teacher_loras
    )
    inputs = Inputs(teacher, shared_sha256("model.teacher", teacher), dataset, loras, mixed)
    check_same(f"data.dataset ({config.data.dataset})", _digest(config, inputs))
    with beginning_together():
        if resume:
            _check_unchanged(config, inputs)
    return inputs


def _check_files(config: TrainConfig, *, resume: bool) -> tuple[Path, LatentDataset]:
    """Check that all files exist and have the right kind; return the teacher's path and the dataset."""
    if not resume and (config.run / FOLDER).exists():
        raise ConfigError(
            f"{config.run} already contains a run. Continue it with --resume, or choose another folder (run=FOLDER)."
        )
    teacher = teacher_path(config)
    files = weight_files(teacher)
    for file in files:
        _check_exists("model.teacher", file, "Check the path.")
    for lora in config.model.teacher_loras:
        _check_exists("model.teacher_loras: file", lora.file, "Check the path.")
    if config.model.teacher_loras:
        # Reads only the header of the teacher, and shows whether the LoRAs fit it.
        load_teacher(config, "meta")
    if config.context_parallel > 1:
        heads = load_checkpoint(teacher, "meta").shape.heads
        check_degree(config.context_parallel, world_size(), heads, str(teacher))
    dataset = LatentDataset(config.data.dataset)
    if config.data.captions:
        checked_texts(dataset)
    _check_prompts(config, teacher, files)
    _check_vae(config)
    if config.method.start_file is not None:
        _check_exists("method.few_step_generator", config.method.start_file, "Export one from a run of w2s or dmd2.")
    if resume:
        run_facts(config.run)
        if (config.run / FOLDER / LATEST).is_file():
            checkpoints.verified(config.run)
    return teacher, dataset


def _check_exists(field: str, path: Path, advice: str) -> None:
    if not path.exists():
        raise ConfigError(f"{field} is {path}, which does not exist. {advice}")


def _check_prompts(config: TrainConfig, teacher: Path, files: list[Path]) -> None:
    model = config.model
    prompts = {
        "model.null_prompt": (model.null_prompt, ""),
        "model.negative_prompt": (
            model.negative_prompt,
            " Set its text with --prompt, or take the release's with --negative.",
        ),
    }
    for field, (path, text) in prompts.items():
        if path is not None:
            _check_exists(field, path, f"Create it with: {ENCODE_PROMPT.format(out=shlex.quote(str(path)))}{text}")
            load_null_prompt(path)
    # The header of a pickle cannot be read. Loading the teacher later reports a missing null prompt.
    readable = [file for file in files if not is_pickle_name(file)]
    if model.null_prompt is None and readable and not _have_null_prompt(readable):
        raise CheckpointError(
            f"The teacher {teacher} carries no null prompt, and model.null_prompt is not set. Create one and set "
            f"model.null_prompt to it: {ENCODE_PROMPT.format(out='null_prompt.safetensors')}"
        )


def _have_null_prompt(files: list[Path]) -> bool:
    return any(key.endswith(NULL_TEXT_KEY) for file in files for key in read_header(file))


def _check_vae(config: TrainConfig) -> None:
    settings = config.validation
    if not settings.every or settings.vae == POCKET:
        return
    vae = Path(settings.vae)
    _check_exists("validation.vae", vae, "Set it to the VAE that encoded the dataset, or set validation.every=0.")
    if vae.is_file():
        read_metadata(vae)


def _facts(config: TrainConfig, inputs: Inputs) -> dict[str, Any]:
    return {
        "teacher": str(inputs.teacher.resolve()),
        "teacher_hash": inputs.teacher_hash,
        "mode": config.model.mode,
        **_lora_facts(config, inputs),
        "samples": sum(len(dataset) for dataset in (inputs.dataset, *inputs.mixed)),
        _DIGEST: _digest(config, inputs),
    }


def _lora_facts(config: TrainConfig, inputs: Inputs) -> dict[str, Any]:
    """Return the facts about the teacher's LoRAs; none for a run without them, as in earlier versions."""
    if not inputs.teacher_loras:
        return {}
    files = [str(lora.file.resolve()) for lora in config.model.teacher_loras]
    loras = [lora.model_dump() for lora in inputs.teacher_loras]
    return {TEACHER_LORAS: [{"file": file} | lora for file, lora in zip(files, loras, strict=True)]}


def _digest(config: TrainConfig, inputs: Inputs) -> str:
    first = dataset_digest(inputs.dataset.index)
    if not inputs.mixed:
        return first
    facts = [first, *(dataset_digest(dataset.index) for dataset in inputs.mixed), config.data.weights]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def dataset_digest(index: DatasetIndex) -> str:
    """Return the sha256 of a dataset's contents: geometry, encoders, videos, samples in their order, and captions.

    It does not depend on where the dataset is stored. Datasets of earlier versions keep their digest: they have no
    contents of videos and no captions.
    """
    names = {"family", "frames", "height", "width", "fps", "stride", "dtype", "vae_sha256", "image_encoder_sha256"}
    added = {name for name in ("contents", "rules_sha256") if getattr(index, name)}
    facts = index.model_dump(include=names | added)
    facts["shards"] = index.shard_facts()
    if index.texts is not None:
        facts["texts"] = index.texts.model_dump()
        facts["prompts"] = [[p.model_dump() for p in shard.prompts or []] for shard in index.shards]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_unchanged(config: TrainConfig, inputs: Inputs) -> None:
    """Check that the teacher, the mode and the dataset are those that `run.json` records.

    Raises:
        CheckpointError: if one of them differs.
    """
    path = config.run / RUN_FILE
    before, now = json.loads(path.read_text(encoding="utf-8")), _facts(config, inputs)
    for facts in (before, now):
        facts["loras"] = [[lora["name"], lora["sha256"], lora["weight"]] for lora in facts.get(TEACHER_LORAS, [])]
    dataset = f"a dataset other than {config.data.dataset}"
    for name, what in (
        ("teacher_hash", f"a teacher other than {inputs.teacher}: its sha256 was"),
        ("loras", "other LoRAs in its teacher: model.teacher_loras (name, sha256, weight) were"),
        ("mode", "another mode: model.mode was"),
        ("samples", f"{dataset}: its number of samples was"),
        (
            _DIGEST,
            f"{dataset} (the same number of samples, but other samples, geometry, frame rate or VAE): its digest was",
        ),
    ):
        if before.get(name) != now[name]:
            raise CheckpointError(
                f"{config.run} was started with {what} {before.get(name)}, now it is {now[name]}. A run can resume "
                "only with the teacher, mode and dataset of its start. Restore them, or start a new run in another "
                "folder."
            )


def record_inputs(config: TrainConfig, inputs: Inputs) -> None:
    """Write `run.json` and the configuration into the run's folder; a collective call.

    Args:
        config: the training's configuration.
        inputs: the result of `check_inputs`.
    """
    barrier()
    if is_main():
        config.run.mkdir(parents=True, exist_ok=True)
        write_text(config.run / RUN_FILE, json.dumps(_facts(config, inputs), indent=1))
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_text(config.run / CONFIG_FILE, text)
    barrier()
