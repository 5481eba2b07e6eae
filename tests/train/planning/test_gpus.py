"""GPUs of the planner: names, numbers by hand, and errors."""

import pytest

from magicdistill_core.errors import ConfigError
from train.planning.gpus import GPUS, gpu_named
from train.planning.machines import Machines


@pytest.mark.parametrize("written", ["h100-pcie", "H100 PCIe", "H100PCIE"])
def test_a_name_may_be_written_in_any_way(written: str) -> None:
    assert gpu_named(written).name == "h100-pcie"


def test_numbers_by_hand_replace_those_of_the_table() -> None:
    gpu = gpu_named("a100", memory=40)
    assert (gpu.memory, gpu.tflops) == (40, gpu_named("a100").tflops)
    assert gpu_named("mine", memory=64, tflops=100, bandwidth=1000).tflops == 100


def test_an_unknown_gpu_needs_its_numbers() -> None:
    with pytest.raises(ConfigError, match="'h900'") as error:
        gpu_named("h900", memory=64)
    assert all(name in str(error.value) for name in ("--tflops", "--bandwidth", *(gpu.name for gpu in GPUS)))
    assert "--memory" not in str(error.value)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_numbers_must_be_positive(value: float) -> None:
    with pytest.raises(ConfigError, match=r"--tflops .*positive"):
        gpu_named("h100", tflops=value)


def test_several_machines_send_over_the_network() -> None:
    gpu = gpu_named("h100")
    assert Machines(gpu, 8, 50).link == gpu.link
    assert Machines(gpu, 9, 50).link == 50
    assert Machines(gpu_named("l40s"), 16, 50).link == gpu_named("l40s").link
