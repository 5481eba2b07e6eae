"""Measure in a separate process how much the pack adds to ComfyUI's start.

Usage: import_cost.py COMFYUI REPEATS. ComfyUI's modules are loaded once; every measurement is a fork of that process.
Writes JSON: a list of {"seconds": processor time, "loop": processor time of a fixed loop, "packages": packages that
were not loaded before}.
"""

import asyncio
import gc
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
COMFYUI, REPEATS = sys.argv[1], int(sys.argv[2])
sys.path.insert(0, COMFYUI)
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import server  # noqa: E402, F401

import nodes  # noqa: E402

NAME = "custom_nodes_magicdistillation"


async def load_pack() -> None:
    """Import the pack, run its entry point and ask every node for its schema, as ComfyUI does."""
    spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    extension = await module.comfy_entrypoint()
    await extension.on_load()
    for node in await extension.get_node_list():
        node.GET_SCHEMA()


def measure() -> dict[str, object]:
    """Load the pack in this process. Works only once."""
    before = set(sys.modules)
    start = time.process_time()
    asyncio.run(load_pack())
    seconds = time.process_time() - start
    start = time.process_time()
    sum(number * number for number in range(10**6))
    loop = time.process_time() - start
    added = {name.partition(".")[0] for name in set(sys.modules) - before} - {name.partition(".")[0] for name in before}
    return {"seconds": seconds, "loop": loop, "packages": sorted(added - {NAME})}


def forked() -> dict[str, object]:
    """Run `measure` in a child process."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, json.dumps(measure()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        found = json.load(answer)
    os.wait()
    return found


asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
# When the collector touches objects in a child, the kernel copies them: a cost of the fork only.
gc.freeze()
sys.stdout.write(json.dumps([forked() for _ in range(REPEATS)]))
