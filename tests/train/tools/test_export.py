import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from safetensors.torch import save_file

import train.tools.export
from magicdistill_core.branch import merge
from magicdistill_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from magicdistill_core.errors import CheckpointError, OutputError
from magicdistill_core.families.hunyuan_video import TOKEN_REPLACE
from magicdistill_core.hashes import file_sha256
from magicdistill_core.layouts.lora import lora_state
from magicdistill_core.lora_file import load_lora, save_lora
from magicdistill_core.recipe import Recipe
from magicdistill_core.safetensors_file import read_header, read_metadata, read_tensors
from tests.makers import branches, file_size_limit, file_state, hunyuan_shape, random_prompt
from train.networks.families.hunyuan_video import network_inputs
from train.networks.network import load_network
from train.networks.weights import merge_lora
from train.run_folder import FAKE_LORA_FILE, GENERATOR_FILE, GENERATOR_LORA_FILE
from train.tools.export import ExportFormat, export_run


@pytest.fixture
def run(tmp_path: Path, teacher_file: Path, request: pytest.FixtureRequest) -> Path:
    """A run folder with checkpoints of updates 2 and 4; the fixture's parameter is the mode."""
    mode, root = request.param, tmp_path / "run"
    teacher = load_checkpoint(teacher_file)
    sha = file_sha256(teacher_file)
    assert teacher.recipe is not None
    for step in (2, 4):
        folder = root / "checkpoints" / f"step-{step:06d}"
        recipe = teacher.recipe.model_copy(
            update={"kind": "generator", "steps": 4, "method": "w2s", "training_step": step, "teacher_hash": sha}
        )
        lora = recipe.model_copy(update={"kind": "generator_lora", "base_hash": sha, "lora_rank": 4, "lora_alpha": 8.0})
        if mode == "full":
            state = merge(teacher.state, branches(step), 1.0)
            save_checkpoint(folder / GENERATOR_FILE, state, recipe, teacher.null_prompt)
        else:
            save_lora(folder / GENERATOR_LORA_FILE, branches(step), lora)
        save_lora(folder / FAKE_LORA_FILE, branches(10 + step), lora.model_copy(update={"kind": "fake_lora"}))
    (root / "checkpoints" / "latest").write_text("step-000004\n")
    (root / "run.json").write_text(json.dumps({"teacher": str(teacher_file), "teacher_hash": sha, "mode": mode}))
    return root


both_modes = pytest.mark.parametrize("run", ["full", "lora"], indirect=True)
full_mode = pytest.mark.parametrize("run", ["full"], indirect=True)
lora_mode = pytest.mark.parametrize("run", ["lora"], indirect=True)


@both_modes
@pytest.mark.parametrize(("asked", "step"), [(None, 4), (2, 2)])
def test_comfyui_file_is_the_full_generator(
    tmp_path: Path, teacher_file: Path, run: Path, asked: int | None, step: int
) -> None:
    export_run(run, tmp_path / "g.safetensors", update=asked)
    got, teacher = load_checkpoint(tmp_path / "g.safetensors"), load_checkpoint(teacher_file)
    assert got.recipe is not None
    assert (got.recipe.kind, got.recipe.training_step, got.recipe.steps) == ("generator", step, 4)
    assert (got.recipe.base_hash, got.recipe.lora_rank, got.recipe.lora_alpha) == (None, None, None)
    assert got.null_prompt is not None
    assert teacher.null_prompt is not None
    assert torch.equal(got.null_prompt.text_states, teacher.null_prompt.text_states)
    for key, weight in teacher.state.items():
        branch = branches(step).get(key.removesuffix(".weight"))
        expected = weight if branch is None else weight + 2.0 * branch.up @ branch.down  # alpha / rank = 2
        assert torch.allclose(got.state[key], expected, atol=1e-6), key


@both_modes
def test_the_file_has_the_requested_dtype(tmp_path: Path, run: Path) -> None:
    export_run(run, tmp_path / "g.safetensors", dtype=torch.bfloat16)
    header = read_header(tmp_path / "g.safetensors")
    assert {info.dtype for key, info in header.items() if not key.startswith("null_prompt.")} == {"BF16"}
    export_run(run, tmp_path / "d", "diffusers", dtype=torch.float16)
    header = read_header(tmp_path / "d" / "diffusion_pytorch_model.safetensors")
    assert {info.dtype for info in header.values()} == {"F16"}


@full_mode
@pytest.mark.parametrize("format", ["comfyui", "int8", "diffusers"])
def test_a_full_disk_is_reported_and_leaves_no_file(tmp_path: Path, run: Path, format: ExportFormat) -> None:
    out = tmp_path / "out" / "g.safetensors"
    out.parent.mkdir()
    with file_size_limit(100_000), pytest.raises(CheckpointError, match=r"g\.safetensors .*written .*disk"):
        export_run(run, out, format)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("format", ["comfyui", "int8", "lora", "diffusers"])
def test_a_place_that_cannot_be_written_is_named_before_anything_is_loaded(
    tmp_path: Path, format: ExportFormat
) -> None:
    """Even before the run is looked at, which does not exist here."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match=f"{tmp_path / 'file'} is a file"):
        export_run(tmp_path / "none", tmp_path / "file" / "out.safetensors", format)


@full_mode
def test_two_diffusers_exports_at_once_leave_one_complete_folder(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one starts and ends while the first one writes."""
    out, network = tmp_path / "out", train.tools.export.load_network

    def other_first(*given: Any) -> Any:
        monkeypatch.setattr(train.tools.export, "load_network", network)
        export_run(run, out, "diffusers")
        return network(*given)

    monkeypatch.setattr(train.tools.export, "load_network", other_first)
    with pytest.raises(CheckpointError, match=f"{out} cannot be written"):
        export_run(run, out, "diffusers")
    HunyuanVideoTransformer3DModel.from_pretrained(out)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


@both_modes
def test_int8_file_is_the_generator_rounded(tmp_path: Path, run: Path) -> None:
    done = export_run(run, tmp_path / "q.safetensors", "int8", dtype=torch.bfloat16)
    export_run(run, tmp_path / "g.safetensors")
    assert done is not None
    assert done.error < 0.01
    exact, (got, _) = load_checkpoint(tmp_path / "g.safetensors"), read_tensors(tmp_path / "q.safetensors")
    assert Recipe.from_metadata(read_metadata(tmp_path / "q.safetensors")) == exact.recipe
    assert "null_prompt.text_states" in got
    assert {value.dtype for key, value in got.items() if key.removesuffix(".weight") in done.errors} == {torch.int8}
    for key, weight in exact.state.items():
        name = key.removesuffix(".weight")
        back = got[key] * got[f"{key}_scale"] if name in done.errors else got[key]
        assert back.dtype == (torch.float32 if name in done.errors else torch.bfloat16)
        assert (back - weight).norm() <= 0.012 * weight.norm(), key


@both_modes
def test_diffusers_and_the_trainer_load_the_folder_with_equal_velocities(tmp_path: Path, run: Path) -> None:
    export_run(run, tmp_path / "transformer", "diffusers")
    export_run(run, tmp_path / "g.safetensors")
    there = HunyuanVideoTransformer3DModel.from_pretrained(tmp_path / "transformer").eval()
    assert there.config.image_condition_type == "latent_concat"
    single = load_checkpoint(tmp_path / "g.safetensors")
    here = load_checkpoint(tmp_path / "transformer")
    assert here.recipe == single.recipe
    assert here.null_prompt is not None
    generator = torch.Generator().manual_seed(0)
    inputs = network_inputs(
        torch.randn(1, 16, 2, 4, 4, generator=generator),
        torch.tensor([0.9375]),
        torch.randn(1, 17, 2, 4, 4, generator=generator),
        here.null_prompt,
    )
    # diffusers requires a mask.
    inputs["encoder_attention_mask"] = torch.ones(here.null_prompt.text_states.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        velocities = [net(**inputs, return_dict=False)[0] for net in (there, load_network(single), load_network(here))]
    assert torch.equal(velocities[0], velocities[1])
    assert torch.equal(velocities[0], velocities[2])
    with pytest.raises(CheckpointError, match="exists already"):
        export_run(run, tmp_path / "transformer", "diffusers")


@lora_mode
def test_lora_export_is_the_generators(tmp_path: Path, run: Path) -> None:
    export_run(run, tmp_path / "l.safetensors", "lora")
    lora = load_lora(tmp_path / "l.safetensors", 128)
    assert lora.recipe is not None
    assert lora.recipe.kind == "generator_lora"
    for name, branch in branches(4).items():
        assert torch.equal(lora.branches[name].up, branch.up)
        assert lora.branches[name].alpha == 8.0
    export_run(run, tmp_path / "half.safetensors", "lora", dtype=torch.bfloat16)
    dtypes = {
        key.rpartition(".lora_")[2] if "lora_" in key else "alpha": info.dtype
        for key, info in read_header(tmp_path / "half.safetensors").items()
    }
    assert dtypes == {"A.weight": "BF16", "B.weight": "BF16", "alpha": "F32"}
    assert Recipe.from_metadata(read_metadata(tmp_path / "half.safetensors")) == lora.recipe


@full_mode
def test_a_full_run_has_no_lora(tmp_path: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"LoRA.*model\.mode=full.*--format comfyui"):
        export_run(run, tmp_path / "l.safetensors", "lora")


@lora_mode
def test_the_teacher_must_be_the_one_trained_on(tmp_path: Path, teacher_file: Path, run: Path) -> None:
    facts = json.loads((run / "run.json").read_text()) | {"teacher": str(tmp_path / "moved.safetensors")}
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"moved\.safetensors .*--teacher"):
        export_run(run, tmp_path / "g.safetensors")
    export_run(run, tmp_path / "g.safetensors", teacher=teacher_file)
    teacher = load_checkpoint(teacher_file)
    assert teacher.recipe is not None
    changed = {key: value + 1 for key, value in teacher.state.items()}
    save_checkpoint(tmp_path / "moved.safetensors", changed, teacher.recipe, teacher.null_prompt)
    with pytest.raises(CheckpointError, match=r"sha256.*moved\.safetensors"):
        export_run(run, tmp_path / "g.safetensors")


@both_modes
def test_a_teacher_that_the_export_does_not_read_is_refused(tmp_path: Path, teacher_file: Path, run: Path) -> None:
    full = json.loads((run / "run.json").read_text())["mode"] == "full"
    formats: list[ExportFormat] = ["comfyui", "int8", "diffusers"] if full else ["lora"]
    for format in formats:
        with pytest.raises(CheckpointError, match=r"needs no teacher.*--teacher"):
            export_run(
                run, tmp_path / ("d" if format == "diffusers" else "g.safetensors"), format, teacher=teacher_file
            )
    assert not list(tmp_path.glob("g*"))


@lora_mode
def test_the_base_of_a_lora_is_checked_and_described(
    tmp_path: Path, teacher_file: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora = load_lora(run / "checkpoints" / "step-000004" / GENERATOR_LORA_FILE, 128)
    assert lora.recipe is not None

    def merged(**changes: object) -> Checkpoint:
        save_lora(tmp_path / "l.safetensors", lora.branches, lora.recipe.model_copy(update=changes))
        return merge_lora(teacher_file, tmp_path / "l.safetensors")

    with pytest.raises(CheckpointError, match=r"fake_lora, expected generator_lora or teacher_lora.*only scores"):
        merged(kind="fake_lora")
    with pytest.raises(CheckpointError, match="of kind generator, expected") as refused:
        merged(kind="generator")
    assert "fake" not in str(refused.value)
    with pytest.raises(CheckpointError, match=r"base folder with sha256 ab, but the file .*never have the same"):
        merged(base_hash="ab", base_kind="folder")
    with pytest.raises(CheckpointError, match="base file with sha256 ab, but the file ") as refused:
        merged(base_hash="ab")
    assert "never" not in str(refused.value)
    assert "cannot be checked" not in caplog.text
    merged(base_hash=None)
    assert "without the base's sha256" in caplog.text


@lora_mode
def test_a_lora_without_a_recipe_keeps_the_image_mode_of_its_base(tmp_path: Path, run: Path) -> None:
    shape = hunyuan_shape(in_channels=16)
    state = file_state(shape, TOKEN_REPLACE)
    lora = load_lora(run / "checkpoints" / "step-000004" / GENERATOR_LORA_FILE, 128)
    assert lora.recipe is not None
    base = lora.recipe.model_copy(update={"kind": "teacher", "i2v_mode": "token_replace", "base_hash": None})
    save_checkpoint(tmp_path / "base.safetensors", state, base, None)
    save_file(lora_state(lora.branches), tmp_path / "l.safetensors")
    merged = merge_lora(tmp_path / "base.safetensors", tmp_path / "l.safetensors")
    assert merged.recipe is None
    assert merged.family() is TOKEN_REPLACE


@lora_mode
def test_captions_of_a_lora_replace_those_of_its_base(tmp_path: Path, teacher_file: Path, run: Path) -> None:
    """The merged network was trained with the LoRA's. A LoRA without captions leaves those of the base."""
    lora, teacher = (
        load_lora(run / "checkpoints" / "step-000004" / GENERATOR_LORA_FILE, 128),
        load_checkpoint(teacher_file),
    )
    assert lora.recipe is not None
    assert teacher.recipe is not None
    old, new = {"blinks": random_prompt(2)}, {"speaks": random_prompt(4)}
    base, path = tmp_path / "base.safetensors", tmp_path / "l.safetensors"
    save_checkpoint(base, teacher.state, teacher.recipe, teacher.null_prompt, captions=old)
    recipe = lora.recipe.model_copy(update={"base_hash": None})
    for captions, expected in ((new, "speaks"), (None, "blinks")):
        save_lora(path, lora.branches, recipe, None, captions)
        assert list(merge_lora(base, path).captions) == [expected]


@full_mode
def test_missing_and_damaged_files_are_named(tmp_path: Path, run: Path) -> None:
    out = tmp_path / "g.safetensors"
    with pytest.raises(CheckpointError, match=r"checkpoint of update 3\..*: 2, 4"):
        export_run(run, out, update=3)
    with pytest.raises(CheckpointError, match=r"g\.ckpt.*\.safetensors"):
        export_run(run, tmp_path / "g.ckpt")
    with pytest.raises(CheckpointError, match=r"g\.ckpt.*\.safetensors"):
        export_run(run, tmp_path / "g.ckpt", "int8")
    latest = run / "checkpoints" / "latest"
    latest.write_text("step-000009")
    with pytest.raises(CheckpointError, match=r"latest .*'step-000009'.*2, 4"):
        export_run(run, out)
    latest.unlink()
    with pytest.raises(CheckpointError, match=r"checkpoints/latest.*2, 4"):
        export_run(run, out)
    cut = run / "checkpoints" / "step-000002" / GENERATOR_FILE
    cut.write_bytes(cut.read_bytes()[:-64])
    with pytest.raises(CheckpointError, match=r"generator\.safetensors .*truncated"):
        export_run(run, out, update=2)
    (run / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"run\.json .*damaged"):
        export_run(run, out)
    (run / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"/run .*no run\.json"):
        export_run(run, out)
    assert not out.exists()


@full_mode
def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path, run: Path) -> None:
    (run / "checkpoints").rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        export_run(run, tmp_path / "g.safetensors")
