"""The ComfyUI side of the comparison: run jobs with a real ComfyUI in a separate process.

Usage: python stock_side COMFYUI. Each line of the input names a JSON file of jobs, and each job a function and the file
for its tensors. The answer to a line is a line of `ANSWER` and, if a job failed, its traceback as JSON text.
"""

import gc
import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMFYUI = sys.argv[1]
ANSWER = "stock side:"
sys.path.insert(0, COMFYUI)
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import folder_paths  # noqa: E402
import jobs_conditioning  # noqa: E402
import jobs_encoders  # noqa: E402
import jobs_inputs  # noqa: E402
import jobs_loras  # noqa: E402
import jobs_models  # noqa: E402
import jobs_patches  # noqa: E402
import jobs_records  # noqa: E402
import jobs_retrieval  # noqa: E402
import jobs_sampling  # noqa: E402
import jobs_saving  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

# Jobs and ComfyUI print whatever they like. The answers go where only they go.
ANSWERS = sys.stdout
sys.stdout = sys.stderr


@contextmanager
def own_folders() -> Iterator[None]:
    """Forget afterwards which folders were added: other jobs have files of the same names."""
    before = {name: (list(paths), types) for name, (paths, types) in folder_paths.folder_names_and_paths.items()}
    try:
        yield
    finally:
        folder_paths.folder_names_and_paths.clear()
        folder_paths.folder_names_and_paths.update(before)
        folder_paths.filename_list_cache.clear()


def main() -> None:
    """Run the jobs one after another, until the input ends."""
    modules = (
        *(jobs_conditioning, jobs_encoders, jobs_inputs, jobs_loras),
        *(jobs_models, jobs_patches, jobs_records, jobs_retrieval, jobs_sampling, jobs_saving),
    )
    jobs = {name: job for module in modules for name, job in vars(module).items()}
    for line in sys.stdin:
        problem = ""
        try:
            with own_folders():
                for job in json.loads(Path(line.strip()).read_text()):
                    tensors = jobs[f"job_{job['run']}"](job)
                    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, job["out"])
        except BaseException:
            problem = traceback.format_exc()
        print(ANSWER, json.dumps(problem), file=ANSWERS, flush=True)
        comfy.model_management.unload_all_models()
        gc.collect()


if __name__ == "__main__":
    main()
