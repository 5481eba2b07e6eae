"""The errors that a user can fix. Each message states what was found, what was expected and what to do."""


class MagicDistillError(ValueError):
    """Invalid input: a file, a setting, or a combination of them."""


class CheckpointError(MagicDistillError):
    """A model file that is damaged, unsafe, of another family, or incomplete."""


class VideoError(MagicDistillError):
    """A video or image that cannot be read, is too short, or has a size that the model does not support."""


class ConfigError(MagicDistillError):
    """A configuration with a misspelt field, an invalid value or a contradiction."""
