"""The differences between model families: latent geometry, conditioning, names.

A *family* is a transformer architecture with one way in which the start image enters it (its `i2v_mode`). There is one
module per architecture. The functions here find these modules themselves.
"""

import importlib
import pkgutil
from collections.abc import Collection
from functools import cache

from ..errors import CheckpointError, ImageModeError
from ..layouts.lora import known_modules
from .base import Architecture, Family


@cache
def all_families() -> tuple[Family, ...]:
    """Return every family that a module of this package defines."""
    modules = (importlib.import_module(f".{info.name}", __name__) for info in pkgutil.iter_modules(__path__))
    return tuple(family for module in modules for family in getattr(module, "FAMILIES", ()))


def all_architectures() -> tuple[Architecture, ...]:
    """Return every transformer that a family uses."""
    return tuple({family.architecture.name: family.architecture for family in all_families()}.values())


def architecture_of(keys: Collection[str]) -> Architecture | None:
    """Return the transformer with these tensor names; None if no family has such a transformer.

    Args:
        keys: tensor names, in the file layout or in diffusers' layout.
    """
    for architecture in all_architectures():
        if architecture.file_mark in keys or architecture.diffusers_mark in keys:
            return architecture
    return None


def architecture_knowing(modules: Collection[str]) -> Architecture:
    """Return the transformer that knows most of these module names, in either layout: the base model of a LoRA.

    Args:
        modules: module names of a LoRA, without prefixes. If no transformer knows any of them, the first one is
            returned.
    """
    return max(all_architectures(), key=lambda architecture: known_modules(architecture.layout, modules))


def family_named(architecture: str, i2v_mode: str) -> Family | None:
    """Return the family that a recipe names; None if there is no such family.

    Args:
        architecture: `Recipe.family`, such as `hunyuan_video`.
        i2v_mode: `Recipe.i2v_mode`, such as `concat`.
    """
    found = (f for f in all_families() if (f.architecture.name, f.i2v_mode) == (architecture, i2v_mode))
    return next(found, None)


def choose_family(
    architecture: Architecture, in_channels: int, stated: str | None, chosen: str | None, source: str
) -> Family:
    """Return the family of a network, chosen from its weights, its file and the user's setting without guessing.

    Args:
        architecture: the transformer.
        in_channels: input channels of its patch embedding.
        stated: the `i2v_mode` that the file states (recipe or diffusers' configuration); None if it states none.
        chosen: the `i2v_mode` that the user sets; None if the user sets none.
        source: the file's name for error messages.

    Raises:
        CheckpointError: if no family has these weights.
        ImageModeError: if several families have these weights and neither file nor user states the mode; if the mode
            contradicts the weights; or if file and user contradict each other.
    """
    of_kind = [family for family in all_families() if family.architecture is architecture]
    fitting = {family.i2v_mode: family for family in of_kind if family.in_channels == in_channels}
    if not fitting:
        known = ", ".join(f"{family.in_channels} ({family.title})" for family in of_kind)
        raise CheckpointError(
            f"{source} is a {architecture.title} transformer of {in_channels} input channels. No known family has "
            f"this number. Known are {known}. Use a model file of one of these."
        )
    if stated and chosen and stated != chosen:
        raise ImageModeError(
            f"{source} states i2v_mode {stated!r}, but i2v_mode is set to {chosen!r}. Remove the setting, or choose "
            f"another file."
        )
    mode = chosen or stated
    if mode is None:
        if len(fitting) > 1:
            choices = "; ".join(f"{name}: {family.title}" for name, family in fitting.items())
            raise ImageModeError(
                f"{source} takes {in_channels} input channels, and its weights do not tell which model it is "
                f"({choices}). Set i2v_mode={' or '.join(fitting)}."
            )
        return next(iter(fitting.values()))
    if mode not in fitting:
        raise ImageModeError(
            f"{source} has {in_channels} input channels, which does not go with i2v_mode {mode!r}. Its weights go with "
            f"{' or '.join(fitting)}. Set that mode, or choose another file."
        )
    return fitting[mode]
