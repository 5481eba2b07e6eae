"""What differs between teachers: latent geometry, conditioning, names. One module a family, found by being here."""

import importlib
import pkgutil
from collections.abc import Collection
from functools import cache

from ..errors import CheckpointError
from ..layouts.lora import known_modules
from .base import Architecture, Family


@cache
def all_families() -> tuple[Family, ...]:
    """Every family of every module in this package."""
    modules = (importlib.import_module(f".{info.name}", __name__) for info in pkgutil.iter_modules(__path__))
    return tuple(family for module in modules for family in getattr(module, "FAMILIES", ()))


def all_architectures() -> tuple[Architecture, ...]:
    """Every transformer that a family uses."""
    return tuple({family.architecture.name: family.architecture for family in all_families()}.values())


def architecture_of(keys: Collection[str]) -> Architecture | None:
    """The transformer whose names these are, in either spelling; None if no family has it."""
    for architecture in all_architectures():
        if architecture.file_mark in keys or architecture.diffusers_mark in keys:
            return architecture
    return None


def architecture_knowing(modules: Collection[str]) -> Architecture:
    """The transformer that knows most of these module names, in either spelling: whose a LoRA is."""
    return max(all_architectures(), key=lambda architecture: known_modules(architecture.layout, modules))


def family_named(architecture: str, i2v_mode: str) -> Family | None:
    """The family that a recipe names."""
    found = (f for f in all_families() if (f.architecture.name, f.i2v_mode) == (architecture, i2v_mode))
    return next(found, None)


def choose_family(
    architecture: Architecture, in_channels: int, said: str | None, asked: str | None, source: str
) -> Family:
    """The family of a network, from its weights and from what is said of it; never a guess.

    Args:
        in_channels: of its patch embedding.
        said: the image's way that its file names (recipe, or diffusers' configuration), if it does.
        asked: the way that a user names, if they do.
        source: the file, for the message.

    Raises:
        CheckpointError: if no family has such weights, several have and nobody says which, or what is said does not
            fit the weights or each other.
    """
    of_kind = [family for family in all_families() if family.architecture is architecture]
    fitting = {family.i2v_mode: family for family in of_kind if family.in_channels == in_channels}
    if not fitting:
        known = ", ".join(f"{family.in_channels} ({family.title})" for family in of_kind)
        raise CheckpointError(
            f"{source} is a {architecture.title} transformer of {in_channels} input channels, which no family here "
            f"has. Known are {known}. Use a checkpoint of one of these."
        )
    if said and asked and said != asked:
        raise CheckpointError(
            f"{source} says that its start image enters as {said!r}, but {asked!r} was asked for. Leave i2v_mode out, "
            f"or use the file that was meant."
        )
    mode = asked or said
    if mode is None:
        if len(fitting) > 1:
            choices = "; ".join(f"{name}: {family.title}" for name, family in fitting.items())
            raise CheckpointError(
                f"{source} takes {in_channels} input channels, and its weights do not tell which model it is "
                f"({choices}). Say it: i2v_mode={' or '.join(fitting)}."
            )
        return next(iter(fitting.values()))
    if mode not in fitting:
        raise CheckpointError(
            f"{source} has {in_channels} input channels, which does not go with i2v_mode {mode!r}; its weights go with "
            f"{' or '.join(fitting)}. Name the right mode or the right file."
        )
    return fitting[mode]
