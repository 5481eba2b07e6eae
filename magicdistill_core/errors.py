"""The errors that a user can fix. Each message states what was found, what was expected and what to do."""

# ComfyUI loads a pack under its path on the disk and shows `module.Class: message`. The name must not be a path.
_SHOWN_MODULE = "MagicDistillation"


class MagicDistillError(ValueError):
    """Raised when an input is invalid: a file, a setting, or a combination of them."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _name_for_users(cls)


def _name_for_users(kind: type[MagicDistillError]) -> None:
    """Give an exception class the pack's name as its module if its module's name is a path."""
    if "/" in kind.__module__ or "\\" in kind.__module__:
        kind.__module__ = _SHOWN_MODULE


_name_for_users(MagicDistillError)


class CheckpointError(MagicDistillError):
    """Raised when a model file or a checkpoint of a run is missing, damaged, unsafe, incomplete, or does not fit."""


class VideoError(MagicDistillError):
    """Raised when a video or image cannot be read, is too short, or has a size that the model does not support."""


class ConfigError(MagicDistillError):
    """Raised when a configuration has a misspelt field, an invalid value or a contradiction."""
