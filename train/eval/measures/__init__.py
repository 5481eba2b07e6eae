"""All measures of videos, in the order of tables."""

from .base import Measure
from .face import EXPRESSION, FACE_MOTION, IDENTITY
from .features import EFFICIENTNET, FID, fvd
from .perceptual import PERCEPTUAL
from .pixels import PIXELS
from .reference import LPIPS_REFERENCE, PSNR_SSIM
from .smoothness import RIFE_SMOOTHNESS, SMOOTHNESS
from .vbench import AESTHETIC, DYNAMICS, IMAGING, SUBJECT


def all_measures(fvd_frames: int) -> tuple[Measure, ...]:
    """Return all measures.

    Args:
        fvd_frames: number of frames of a clip for FVD.
    """
    return (
        *(SUBJECT, SMOOTHNESS, DYNAMICS, AESTHETIC, IMAGING, PIXELS),
        *(FID, fvd(fvd_frames), EFFICIENTNET),
        *(PERCEPTUAL, RIFE_SMOOTHNESS, PSNR_SSIM, LPIPS_REFERENCE, EXPRESSION),
        *(FACE_MOTION, IDENTITY),
    )
