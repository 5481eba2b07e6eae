"""Errors while a video is read and encoded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from magicdistill_core.errors import MagicDistillError, VideoError, cause


@contextmanager
def as_video_errors(path: Path) -> Iterator[None]:
    """Turn every error of one video into a `VideoError`. One odd video must not end the work on the others.

    Args:
        path: the video.

    Raises:
        VideoError: for every error of the block but those of the GPU itself.
    """
    try:
        yield
    except VideoError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise VideoError(
            f"{path} needs more memory than there is ({cause(error)}). Prepare smaller or shorter clips (--height, "
            f"--width, --frames), or re-encode the video at a smaller size."
        ) from error
    except Exception as error:
        if "CUDA error" in str(error):  # nothing works on a GPU after it
            raise MagicDistillError(
                f"The GPU failed while {path} was encoded ({cause(error)}). All windows before it are stored. Start "
                f"the same command again to continue."
            ) from error
        raise VideoError(
            f"{path} cannot be used ({type(error).__name__}: {cause(error)}). Re-encode it, for example to mp4 with "
            f"h264."
        ) from error
