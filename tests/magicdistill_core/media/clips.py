"""Small clips with chosen times and properties, whose frames can be recognised."""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

LEVEL = 10


def grey(number: int, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """Frame `number`, a grey from which `numbers` reads the number again, up to 24."""
    return np.full((height, width, 3), LEVEL * number, np.uint8)


def write_clip(
    path: Path,
    times: Sequence[float],
    codec: str = "ffv1",
    pixels: str = "bgr0",
    tick: Fraction = Fraction(1, 1000),
    picture: Callable[[int], NDArray[Any]] = grey,
    **settings: Any,
) -> None:
    """Write a clip without sound.

    Args:
        path: the file; its suffix decides the container.
        times: time of each frame in seconds.
        codec: FFmpeg's name of the encoder.
        pixels: FFmpeg's name of the pixel format.
        tick: unit of the times.
        picture: makes the frame of a number, `[H, W, 3]`, or `[H, W, 4]` with opacity.
        settings: attributes of the codec context, and `options`, `rate` and `container`.
    """
    options, rate = settings.pop("options", {}), settings.pop("rate", 24)
    with av.open(f"file:{path}", "w", format=settings.pop("container", None)) as file:
        stream = file.add_stream(codec, rate=rate, options=options)
        first = picture(0)
        stream.height, stream.width, stream.pix_fmt = first.shape[0], first.shape[1], pixels
        stream.codec_context.time_base = stream.time_base = tick
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for number, time in enumerate(times):
            image = picture(number)
            if image.dtype == np.uint16:
                frame = av.VideoFrame.from_ndarray(image, format="rgb48le")
            else:
                frame = av.VideoFrame.from_ndarray(image, format="rgba" if image.shape[2] == 4 else "rgb24")
            matrix = {"dst_colorspace": settings["colorspace"]} if settings.get("colorspace") else {}
            frame = frame.reformat(format=pixels, dst_color_range=settings.get("color_range"), **matrix)
            frame.pts, frame.time_base = round(time / tick), tick
            for packet in stream.encode(frame):
                file.mux(packet)
        file.mux(stream.encode(None))


def numbers(frames: Iterable[Tensor]) -> list[int]:
    """The numbers of grey frames."""
    return [round(float(frame.float().mean()) / LEVEL) for frame in frames]
