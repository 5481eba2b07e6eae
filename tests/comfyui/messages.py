"""The messages that a running ComfyUI sends to a page: progress and previews."""

import asyncio
import io
import json
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from PIL import Image

from .prompts import Prompt

_PREVIEW, _PREVIEW_WITH_METADATA = 1, 4

Listener = Callable[[dict | bytes], bool]


def watch(server: Any, body: dict, on_message: Listener) -> None:
    """Queue a prompt as the page does, and pass every message to `on_message` until it returns that it is done."""

    async def run() -> None:
        address = server.address.replace("http", "ws", 1)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{address}/ws?clientId=watcher", max_msg_size=0) as socket,
        ):
            flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
            await socket.send_json(flags)
            await asyncio.to_thread(server.post, "/prompt", body | {"client_id": "watcher"})
            while True:
                message = await asyncio.wait_for(socket.receive(), 120)
                given = message.data if message.type is aiohttp.WSMsgType.BINARY else json.loads(message.data)
                if await asyncio.to_thread(on_message, given):
                    return

    # In a new thread: the browser's driver runs an event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, run()).result()


def previews_of(
    server: Any, prompt: Prompt, method: str, extra: dict | None = None
) -> tuple[list[Image.Image], list[float]]:
    """Return the previews from the node `sample` of a prompt, and the progress at each of them.

    Args:
        server: the running ComfyUI.
        prompt: the prompt; the run must succeed.
        method: ComfyUI's preview method.
        extra: more entries of the request's `extra_data`.
    """
    found: list[Image.Image] = []
    steps: list[float] = []

    def on_message(message: dict | bytes) -> bool:
        if isinstance(message, bytes):
            (event, length) = struct.unpack(">II", message[:8])
            if event == _PREVIEW_WITH_METADATA:
                assert json.loads(message[8 : 8 + length])["node_id"] == "sample"
                found.append(Image.open(io.BytesIO(message[8 + length :])))
            assert event != _PREVIEW, "sent by the old protocol too"
            return False
        if message["type"] == "progress" and message["data"]["node"] == "sample":
            steps.append(message["data"]["value"])
        assert message["type"] != "execution_error", message["data"]["exception_message"]
        return message["type"] == "execution_success"

    body = {"prompt": prompt, "extra_data": {"preview_method": method} | (extra or {})}
    watch(server, body, on_message)
    return found, steps
