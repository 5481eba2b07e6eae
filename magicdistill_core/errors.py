"""The errors that a user can fix. Each message states what was found, what was expected and what to do."""


class MagicDistillError(ValueError):
    """Raised when an input is invalid: a file, a setting, or a combination of them."""


class CheckpointError(MagicDistillError):
    """Raised when a model file or a checkpoint of a run is missing, damaged, unsafe, incomplete, or does not fit."""


class VideoError(MagicDistillError):
    """Raised when a video or image cannot be read, is too short, or has a size that the model does not support."""


class ConfigError(MagicDistillError):
    """Raised when a configuration has a misspelt field, an invalid value or a contradiction."""


class OutputError(MagicDistillError):
    """Raised when a file or a folder cannot be written."""
