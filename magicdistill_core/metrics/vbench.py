"""The formulas of VBench's dimensions, on what its networks return.

They are those of vbench 0.1.5 (Huang et al., 2024) and of its image-to-video part, for one video. A number may be
called VBench's only if it comes from VBench's networks.
"""

import torch.nn.functional as F
from torch import Tensor

_LEVELS = 255.0
_SMOOTH_FPS = 8
# A video moves if the flow of enough pairs of frames exceeds a limit: 6 pixels at a short side of 256.
_FLOW_LIMIT, _FLOW_SIDE = 6.0, 256.0
_MOVING_PAIRS, _MOVING_FRAMES = 4, 16.0
_TOP_SHARE = 0.05


def subject_consistency(frames_TD: Tensor) -> float:
    """Return the mean over frames of `(cos to the frame before + cos to the first frame) / 2`, no cosine below 0.

    Args:
        frames_TD: embeddings of the frames (VBench: DINO ViT-B/16), `[T, D]` with T of at least 2.
    """
    frames = F.normalize(frames_TD.float(), dim=-1)
    before = F.cosine_similarity(frames[:-1], frames[1:]).clamp(min=0)
    first = F.cosine_similarity(frames[:1], frames[1:]).clamp(min=0)
    return float(((before + first) / 2).double().mean())


def i2v_subject(frames_TD: Tensor, image_D: Tensor) -> float:
    """Return `0.4 max cos to the start image + 0.3 mean + 0.3 min of the cos of neighbours`, no cosine below 0.

    Args:
        frames_TD: embeddings of the frames (VBench: DINO ViT-B/16), `[T, D]` with T of at least 2.
        image_D: embedding of the start image, `[D]`.
    """
    frames = F.normalize(frames_TD.float(), dim=-1)
    to_image = F.cosine_similarity(F.normalize(image_D.float(), dim=-1)[None], frames).clamp(min=0).double()
    neighbours = F.cosine_similarity(frames[:-1], frames[1:]).clamp(min=0).double()
    return float(0.4 * to_image.max() + 0.3 * neighbours.mean() + 0.3 * neighbours.min())


def temporal_flickering(differences: Tensor) -> float:
    """Return `(255 - d) / 255`, where d is the mean of the differences.

    Args:
        differences: mean absolute differences of neighbouring frames in levels of 0 to 255, `[T - 1]`.
    """
    return float((_LEVELS - differences.double().mean()) / _LEVELS)


def motion_smoothness(errors: Tensor) -> float:
    """Return `(255 - e) / 255`, where e is the mean error of the interpolated odd frames.

    Args:
        errors: mean absolute differences between the odd frames and those that a network (VBench: AMT-S) interpolates
            from the even frames, in levels of 0 to 255.
    """
    return temporal_flickering(errors)


def flow_step(fps: float) -> int:
    """Return the distance of the frames between which the dynamic degree measures flow: about 8 a second.

    Args:
        fps: frame rate of the video.
    """
    return max(1, round(fps / _SMOOTH_FPS))


def flow_peak(flow_2HW: Tensor) -> float:
    """Return the mean length of the longest 5 % of the flow vectors, in pixels.

    Args:
        flow_2HW: optical flow (VBench: RAFT, 20 iterations) in pixels, `[2, H, W]`.
    """
    length = flow_2HW.float().square().sum(0).sqrt().flatten()
    count = int(len(length) * _TOP_SHARE)
    return float(length.topk(count).values.double().mean()) if count else float("nan")


def dynamic_degree(peaks: Tensor, short_side: int) -> float:
    """Return 1 if a video moves, and 0 if it does not.

    It moves if the peak exceeds `6 * short_side / 256` in at least `round(4 * frames / 16)` pairs of frames.

    Args:
        peaks: `flow_peak` of each pair of neighbouring frames (`flow_step`), `[T - 1]`.
        short_side: the smaller of height and width, in pixels.
    """
    needed = round(_MOVING_PAIRS * ((len(peaks) + 1) / _MOVING_FRAMES))
    # VBench looks at the count after each pair, so it needs one pair even where `needed` is 0.
    return float(len(peaks) > 0 and int((peaks > _FLOW_LIMIT * short_side / _FLOW_SIDE).sum()) >= needed)
