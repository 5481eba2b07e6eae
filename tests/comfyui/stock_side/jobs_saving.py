"""Jobs about the files that Save portrait video writes."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import folder_paths
import torch
from comfy_api.latest import InputImpl, Types
from jobs_common import letters, load_pack, run_node, told
from torch import Tensor


def job_saving(job: dict) -> dict[str, Tensor]:
    """Save several videos under one name at once, as ComfyUIs that share an output folder do.

    All of them are told the same next number. The answer is the brightness of each video.
    """
    nodes = load_pack()
    folder = Path(job["folder"])
    folder_paths.set_output_directory(job["folder"])
    shades = [float(shade) for shade in job["shades"]]

    def save(shade: float) -> None:
        given = {"fps": 8.0, "filename_prefix": "clip", "format": "mp4 (h264)", "crf": 0.0}
        run_node(nodes.SaveVideo, video=torch.full((2, 32, 32, 3), shade), **given)

    def path(prefix: str, *_: object) -> tuple[str, str, int, str, str]:
        return str(folder), prefix, 1, "", prefix

    with patch.object(folder_paths, "get_save_image_path", path), ThreadPoolExecutor(len(shades)) as threads:
        list(threads.map(save, shades))
    return {"done": torch.ones(1)}


def job_dropping(job: dict) -> dict[str, Tensor]:
    """Save the same IMAGE with several numbers of first frames to leave out, and a VIDEO."""
    nodes = load_pack()
    folder_paths.set_output_directory(job["folder"])
    frames = torch.linspace(0, 1, job["frames"]).reshape(-1, 1, 1, 1).expand(-1, 32, 32, 3)
    given = {"fps": 8.0, "format": "mp4 (h264)", "crf": 0.0}
    out = {}
    for name, inputs in job["settings"].items():
        out[name] = letters(told(nodes.SaveVideo, video=frames, filename_prefix=name, **given, **inputs)[1])
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, frame_rate=Fraction(8)))
    out["video"] = letters(told(nodes.SaveVideo, video=video, filename_prefix="video", **given, drop_frames=2)[1])
    return out
