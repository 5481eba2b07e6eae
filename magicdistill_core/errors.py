"""The errors that a user can mend. Each message says what was found, what was expected and what to do."""


class MagicDistillError(ValueError):
    """Bad input: a file, a setting or a combination of them that cannot work."""


class CheckpointError(MagicDistillError):
    """A weights file that is damaged, unsafe, of another family, or lacks what was asked of it."""


class VideoError(MagicDistillError):
    """A video or image that cannot be read, is too short, or has a geometry that the model cannot take."""


class ConfigError(MagicDistillError):
    """A configuration that is misspelt or contradicts itself."""
