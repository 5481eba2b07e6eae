"""What a training needs is looked at before anything large is loaded: its files, and whether its folder may be used."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from magicdistill_core.diffusers_folder import weight_files
from magicdistill_core.errors import CheckpointError, ConfigError
from magicdistill_core.files import write_text
from magicdistill_core.hashes import weights_sha256
from magicdistill_core.null_prompt import NULL_TEXT_KEY, load_null_prompt
from magicdistill_core.safetensors_file import read_header, read_metadata
from magicdistill_core.wrappers import is_pickle_name

from ..config.training import POCKET, TrainConfig
from ..data.dataset import DatasetIndex, LatentDataset
from ..distributed import barrier, beginning_together, is_main
from ..engines.teacher import teacher_path
from ..networks.weights import ENCODE_PROMPT
from ..run_folder import CONFIG_FILE, FOLDER, LATEST, RUN_FILE, run_facts
from . import checkpoints

_DIGEST = "dataset_digest"


@dataclass(frozen=True)
class Inputs:
    """What was found: where the teacher is, its hash, and the dataset."""

    teacher: Path
    teacher_hash: str
    dataset: LatentDataset


def look(config: TrainConfig, *, resume: bool) -> Inputs:
    """Look at everything that a configuration names, and at the run's folder; a collective call.

    Raises:
        MagicDistillError: on every process, if one of them finds that something is absent or damaged, that the folder
            holds a run already, or that a run to be resumed was started with something else.
    """
    with beginning_together():
        found = _look(config, resume=resume)
    return found


def _look(config: TrainConfig, *, resume: bool) -> Inputs:
    if not resume and (config.run / FOLDER).exists():
        raise ConfigError(
            f"{config.run} already holds a run. Continue it with --resume, or name another folder (run=FOLDER)."
        )
    teacher = teacher_path(config)
    files = weight_files(teacher)
    for file in files:
        _check_there("model.teacher", file, "Check the path.")
    dataset = LatentDataset(config.data.dataset)
    _check_prompts(config, teacher, files)
    _check_vae(config)
    if config.method.start_file is not None:
        _check_there("method.few_step_generator", config.method.start_file, "Export one from a run of w2s or dmd2.")
    if resume:
        run_facts(config.run)
        if (config.run / FOLDER / LATEST).is_file():
            checkpoints.verified(config.run)
    inputs = Inputs(teacher, weights_sha256(teacher), dataset)
    if resume:
        _check_unchanged(config, inputs)
    return inputs


def _check_there(field: str, path: Path, advice: str) -> None:
    if not path.exists():
        raise ConfigError(f"{field} is {path}, which does not exist. {advice}")


def _check_prompts(config: TrainConfig, teacher: Path, files: list[Path]) -> None:
    model = config.model
    texts = {"model.null_prompt": model.null_prompt, "model.negative_prompt": model.negative_prompt}
    for field, path in texts.items():
        if path is not None:
            wording = "" if field == "model.null_prompt" else " Give its text with --prompt."
            _check_there(field, path, f"Make it with: {ENCODE_PROMPT.format(out=path)}{wording}")
            load_null_prompt(path)
    # A pickle has none, or says so once it is read.
    readable = [file for file in files if not is_pickle_name(file)]
    if model.null_prompt is None and readable and not _have_null_prompt(readable):
        raise CheckpointError(
            f"The teacher {teacher} carries no null prompt, and model.null_prompt names none. Make one and name it: "
            f"{ENCODE_PROMPT.format(out='null_prompt.safetensors')}"
        )


def _have_null_prompt(files: list[Path]) -> bool:
    return any(key.endswith(NULL_TEXT_KEY) for file in files for key in read_header(file))


def _check_vae(config: TrainConfig) -> None:
    settings = config.validation
    if not settings.every or settings.vae == POCKET:
        return
    vae = Path(settings.vae)
    _check_there("validation.vae", vae, "Name the VAE that the dataset was made with, or set validation.every=0.")
    if vae.is_file():
        read_metadata(vae)


def _facts(config: TrainConfig, inputs: Inputs) -> dict[str, str | int]:
    return {
        "teacher": str(inputs.teacher.resolve()),
        "teacher_hash": inputs.teacher_hash,
        "mode": config.model.mode,
        "samples": len(inputs.dataset),
        _DIGEST: dataset_digest(inputs.dataset.index),
    }


def dataset_digest(index: DatasetIndex) -> str:
    """sha256 of what a dataset holds, wherever it lies: geometry, encoders, and the samples in their order."""
    facts = index.model_dump(exclude={"format_version", "shards", "sources"})
    facts["shards"] = [[shard.bytes, *shard.samples] for shard in index.shards]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_unchanged(config: TrainConfig, inputs: Inputs) -> None:
    """Refuse to resume with another teacher, mode or dataset than `run.json` records."""
    path = config.run / RUN_FILE
    before, now = json.loads(path.read_text(encoding="utf-8")), _facts(config, inputs)
    data = f"another dataset than {config.data.dataset} is now"
    for name, what in (
        ("teacher_hash", f"another teacher than {inputs.teacher} is now: of sha256"),
        ("mode", "model.mode"),
        ("samples", f"{data}: of samples"),
        (_DIGEST, f"{data} (as many samples, but not the same, or of another geometry, frame rate or VAE): of digest"),
    ):
        if before.get(name) != now[name]:
            raise CheckpointError(
                f"{config.run} was started with {what} {before.get(name)}, now {now[name]}. A run resumes only with "
                "what it began with: restore that, or start a new run in another folder."
            )


def begin(config: TrainConfig, inputs: Inputs) -> None:
    """Write what a run is started or resumed with into its folder; a collective call."""
    barrier()
    if is_main():
        config.run.mkdir(parents=True, exist_ok=True)
        write_text(config.run / RUN_FILE, json.dumps(_facts(config, inputs), indent=1))
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_text(config.run / CONFIG_FILE, text)
    barrier()
