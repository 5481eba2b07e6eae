from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from tests.train.eval.vbench_source import vbench_modules, vbench_source
from train.eval.networks.others import load_amt
from train.eval.networks.raft import raft_flow


class Settings(dict[str, Any]):
    """Settings that the original reads as attributes and as keys."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def test_flow_equals_the_original_with_its_own_names(skip_or_fail: Callable[[str, str], NoReturn]) -> None:
    torch.manual_seed(0)
    try:
        with vbench_modules("vbench.third_party.RAFT.core.raft") as (module,):
            original = module.RAFT(Settings(small=False, mixed_precision=False, alternate_corr=False)).eval()
            # Statistics that a forgotten norm would not have.
            for name, buffer in original.named_buffers():
                if buffer.is_floating_point():
                    buffer.uniform_(0.5, 1.5) if "var" in name else buffer.normal_(0, 0.3)
            first, second = (255 * torch.rand(1, 3, 128, 136) for _ in range(2))
            with torch.no_grad():
                _, expected = original(first, second, iters=20, test_mode=True)
    except OSError as error:
        skip_or_fail("vbench", f"vbench 0.1.5 cannot be downloaded: {error}")
    weights = {f"module.{name}": value for name, value in original.state_dict().items()}
    found = raft_flow(weights, torch.device("cpu"))(first, second)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected[0], rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_amt_is_loaded_without_the_packages_of_vbench(
    skip_or_fail: Callable[[str, str], NoReturn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    first, second = (torch.rand(1, 3, 128, 128) for _ in range(2))
    try:
        with vbench_modules("vbench.third_party.amt.networks.AMT-S") as (module,):
            original = module.Model().eval()
            for parameter in original.parameters():
                torch.nn.init.normal_(parameter, std=0.03)
            with torch.no_grad():
                made = original(first, second, torch.full((1, 1, 1, 1), 0.5), scale_factor=1.0, eval=True)["imgt_pred"]
    except OSError as error:
        skip_or_fail("vbench", f"vbench 0.1.5 cannot be downloaded: {error}")
    torch.save({"state_dict": original.state_dict()}, tmp_path / "amt-s.pth")
    monkeypatch.syspath_prepend(str(vbench_source()))
    assert made.isfinite().all()
    torch.testing.assert_close(load_amt(tmp_path / "amt-s.pth", torch.device("cpu"))(first, second), made)
