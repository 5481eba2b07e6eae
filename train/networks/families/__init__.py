"""How the trainer builds and calls the network of each family: one module for each of `magicdistill_core.families`."""

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
    """How a family's network is built and called."""
    return next(kind for kind in _kinds() if kind.family is family)


def kind_of(network: nn.Module) -> NetworkKind:
    """The kind that built a network.

    Raises:
        TypeError: if none of them did.
    """
    for kind in _kinds():
        if kind.built(network):
            return kind
    raise TypeError(f"{type(network).__name__} is no network of a known family.")
