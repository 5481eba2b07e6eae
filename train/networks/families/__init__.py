"""How the trainer builds and calls the network of each family.

Each module belongs to the module of the same name in `magicdistill_core.families`. A module is found by its `KINDS`.
"""

import importlib
import pkgutil
from functools import cache

from torch import nn

from magicdistill_core.families.base import Family

from .base import NetworkKind


@cache
def _kinds() -> tuple[NetworkKind, ...]:
    modules = (importlib.import_module(f".{info.name}", __name__) for info in pkgutil.iter_modules(__path__))
    return tuple(kind for module in modules for kind in getattr(module, "KINDS", ()))


def kind_for(family: Family) -> NetworkKind:
    """Return how the network of a family is built and called."""
    return next(kind for kind in _kinds() if kind.family is family)


def kind_of(network: nn.Module) -> NetworkKind:
    """Return how a network is called, found by its class and configuration.

    Args:
        network: diffusers' transformer.

    Raises:
        TypeError: if the network is of no known kind.
    """
    for kind in _kinds():
        if kind.built(network):
            return kind
    raise TypeError(f"{type(network).__name__} is not the network of a known family.")
