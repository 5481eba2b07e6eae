"""Jobs about the files that Save portrait video writes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import folder_paths
import torch
from jobs_common import load_pack, run_node
from torch import Tensor


def job_saving(job: dict) -> dict[str, Tensor]:
    """Save several videos under one name at once, as ComfyUIs that share an output folder do.

    All of them are told the same next number. The answer is the brightness of each video.
    """
    nodes = load_pack()
    folder = Path(job["folder"])
    folder_paths.set_output_directory(job["folder"])
    folder_paths.get_save_image_path = lambda prefix, *_: (str(folder), prefix, 1, "", prefix)
    shades = [float(shade) for shade in job["shades"]]

    def save(shade: float) -> None:
        given = {"fps": 8.0, "filename_prefix": "clip", "format": "mp4 (h264)", "crf": 0.0}
        run_node(nodes.SaveVideo, video=torch.full((2, 32, 32, 3), shade), **given)

    with ThreadPoolExecutor(len(shades)) as threads:
        list(threads.map(save, shades))
    return {"done": torch.ones(1)}
