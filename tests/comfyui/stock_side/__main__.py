"""The ComfyUI side of the comparison: run jobs with a real ComfyUI in a separate process.

Usage: python stock_side COMFYUI JOBS.json. Each job names a function and the file for its tensors.
"""

import json
import sys
from pathlib import Path

COMFYUI, JOBS = sys.argv[1:3]
sys.path.insert(0, COMFYUI)
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import jobs_conditioning  # noqa: E402
import jobs_inputs  # noqa: E402
import jobs_loras  # noqa: E402
import jobs_models  # noqa: E402
import jobs_records  # noqa: E402
import jobs_sampling  # noqa: E402
import jobs_saving  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def main() -> None:
    """Run the jobs one after another."""
    modules = (jobs_conditioning, jobs_inputs, jobs_loras, jobs_models, jobs_records, jobs_sampling, jobs_saving)
    jobs = {name: job for module in modules for name, job in vars(module).items()}
    for job in json.loads(Path(JOBS).read_text()):
        tensors = jobs[f"job_{job['run']}"](job)
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, job["out"])


if __name__ == "__main__":
    main()
