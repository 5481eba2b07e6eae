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


class ImageModeError(CheckpointError):
    """Raised when it is unknown how the start image enters a network, or when a stated mode does not fit."""


class VideoError(MagicDistillError):
    """Raised when a video or image cannot be read, is too short, or has a size that the model does not support."""


class ConfigError(MagicDistillError):
    """Raised when a configuration has a misspelt field, an invalid value or a contradiction."""


class OutputError(MagicDistillError):
    """Raised when a file or a folder cannot be written."""


def cause(error: BaseException) -> str:
    """Return the first line of another library's error without its final point, for the middle of our own message.

    Args:
        error: the error. One without a text is named by its class.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200].rstrip(".:") if lines else type(error).__name__
