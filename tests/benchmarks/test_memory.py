"""Computed memory of a training at 13B against memory measured on a GPU."""

import re

import pytest

from benchmarks.__main__ import MEMORY_PAGE, RESULTS, TIMES_PAGE
from benchmarks.cases.iteration import ONE_GPU, PRESET
from benchmarks.harness import GB
from benchmarks.memory import CASES, Files
from benchmarks.runs import together, with_true_peaks
from benchmarks.sizes import FULL_SIZES
from benchmarks.store import Store
from benchmarks.times import MEASURED_ON
from train.data.dataset_index import sample_shapes
from train.distributed import prepare_environment
from train.engines.teacher import load_teacher
from train.memory.simulated import Simulation
from train.memory.training import memory_of_simulation
from train.planning.times import seconds


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    prepare_environment()
    return Files(tmp_path_factory.mktemp("files"))


def test_files_of_true_size_take_no_room(files: Files) -> None:
    for path, size in ((files.hunyuan, 25.6e9), (files.wan, 32.8e9)):
        assert path.stat().st_size == pytest.approx(size, rel=0.01)
        assert path.stat().st_blocks * 512 < 10**6


@pytest.mark.slow
def test_one_update_takes_what_it_took_on_a_gpu(files: Files) -> None:
    medium = FULL_SIZES.medium
    documents = with_true_peaks([Store(path).read() for path in RESULTS.glob("*.json")])
    (row,) = together(documents, "iteration", f"{medium.name}: fake update, exit at the first node")
    peak = row["peak_gb"]
    config = files.settings(PRESET.stem, *ONE_GPU)
    shapes = sample_shapes("hunyuan_video", medium.frames, medium.height, medium.width)
    simulation = Simulation(config, load_teacher(config, "meta"), shapes)
    found = memory_of_simulation(simulation, config, 1).total / GB
    assert found == pytest.approx(peak, rel=0.02)
    row = re.search(rf"^\| {medium.name} \| ([\d.]+) \| {peak:.4g} \|", MEMORY_PAGE.read_text(encoding="utf-8"), re.M)
    assert row is not None
    # The latents of a longer rollout are a few MB more.
    assert found == pytest.approx(float(row[1]), rel=1e-3)
    # Its time too: the page of times has what is computed now.
    took = rf"^\| {medium.name}: fake update, exit at the first node \| ([\d.]+) \|"
    row = re.search(took, TIMES_PAGE.read_text(encoding="utf-8"), re.M)
    assert row is not None
    assert seconds(simulation.updates["fake"].work, MEASURED_ON) == pytest.approx(float(row[1]), rel=1e-3)


def test_every_preset_for_large_teachers_is_on_the_page() -> None:
    page = MEMORY_PAGE.read_text(encoding="utf-8")
    presets = {path.stem for path in PRESET.parent.glob("*.yaml") if not path.stem.startswith("pocket")}
    assert presets == {case.preset for case in CASES}
    assert all(f"| {case.preset} | {case.gpus} | {clip.name} |" in page for case in CASES for clip in case.clips)
