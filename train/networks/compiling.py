"""Blocks of a transformer compiled by PyTorch, once for each kind of block and of call."""

from collections.abc import Callable
from typing import Any

import torch

from .families import kind_of

# What `torch.compile` takes as its backend.
Backend = str | Callable[..., Any]
BACKEND: Backend = "inductor"

# Graphs of one kind of block. Each branch, and none, has one graph for calls with gradients and one for those without.
# Above PyTorch's own limit of 8 it logs a warning, compiles no more, and runs the rest uncompiled.
_GRAPHS = 32


def compile_blocks(transformer: Any) -> None:
    """Compile the blocks of a transformer; all blocks of a kind share their graphs. Call this after `add_branch`.

    A block is compiled at its first call, and again for a new kind of call: another branch, or gradients instead of
    none. The weight of a branch is a tensor (`RoleSwitch`), so that another weight needs no new graph.

    Args:
        transformer: diffusers' transformer; it is changed.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    for block in kind_of(transformer).blocks(transformer):
        block.compile(backend=BACKEND)
