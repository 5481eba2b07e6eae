"""Files written tensor by tensor equal the files that the safetensors library writes at once."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from magicdistill_core.checkpoint import load_checkpoint, save_checkpoint
from magicdistill_core.pocket.files import TEACHER
from magicdistill_core.streamed import Space, streamed_file

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
]


@pytest.mark.parametrize("metadata", [{}, {"format": "ä <"}])
def test_files_equal_the_librarys_to_the_byte(metadata: dict[str, str], tmp_path: Path) -> None:
    """Return tensors of every dtype with names in another order, an empty one, a scalar, and a non-ASCII name."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"empty": torch.zeros(0, 3), "number": torch.tensor(2.5), "ä": torch.ones(3)}
    for number, dtype in enumerate(DTYPES):
        values = torch.randint(0, 2, (3, 5), generator=generator)
        tensors |= {f"{number}.up": values.to(dtype), f"{9 - number}.down": values.T.to(dtype).contiguous()}
    save_file(tensors, tmp_path / "at_once", metadata or None)
    spaces = {name: Space.of(tensor) for name, tensor in tensors.items()}
    with streamed_file(tmp_path / "streamed", spaces, metadata) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "at_once").read_bytes()


class Copies(TorchDispatchMode):
    """Counts the elements of new tensors that do not share the storage of existing ones."""

    def __init__(self, there: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.there = {tensor.untyped_storage().data_ptr() for tensor in there}
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in self.there:
            self.elements += result.numel()
        return result


def test_a_checkpoint_is_written_without_copies(tmp_path: Path) -> None:
    """Also views of one storage can be written, which the library refuses."""
    teacher = load_checkpoint(TEACHER)
    assert teacher.recipe is not None
    pairs = [(name, value) for name, value in teacher.state.items() if name.endswith("qkv.weight")]
    stacked = torch.cat([value for _, value in pairs])
    parts = stacked.split([value.shape[0] for _, value in pairs])
    state = teacher.state | {name: part for (name, _), part in zip(pairs, parts, strict=True)}
    prompt = teacher.null_prompt
    assert prompt is not None
    assert prompt.pooled is not None
    with Copies([*state.values(), prompt.text_states, prompt.pooled]) as copies:
        save_checkpoint(tmp_path / "out.safetensors", state, teacher.recipe, prompt)
    assert copies.elements == 0
    found = load_checkpoint(tmp_path / "out.safetensors")
    assert found.recipe == teacher.recipe
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], value) for name, value in state.items())
