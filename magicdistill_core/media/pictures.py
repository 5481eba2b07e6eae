"""Decoded frames as a player shows them: progressive, upright, with square pixels, in the colours of a usual screen."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from .hdr import HDR_TRANSFERS, to_sdr

# libswscale's flags accurate_rnd, full_chr_h_int and bicubic. By default it rounds down, which darkens every conversion
# by about one level of 255, and repeats chroma pixels. The flags are numbers because some versions of PyAV do not name
# them.
EXACT = 0x40000 | 0x2000 | 4
# The same with the flag area.
AVERAGED = 0x40000 | 0x2000 | 0x20
# A damaged file can state any shape. The most extreme shape in use is 2: anamorphic film, and 3D with halved columns.
_MOST_STRETCH = 4
_NO_TURN = (False, 1, 1)
_BT709, _UNSPECIFIED, _FCC, _BT601, _SMPTE240, _BT2020 = 1, 2, 4, 5, 7, 9
_MATRICES = (_BT709, _FCC, _BT601, _SMPTE240, _BT2020)
_FULL_RANGE = 2
# Players take BT.709 for pictures that are larger than these, and BT.601 for others, if the file states no matrix.
_SD_WIDTH, _SD_HEIGHT = 1279, 576


def deinterlaced(frames: Iterator[tuple[Any, av.VideoFrame]]) -> Iterator[tuple[Any, av.VideoFrame]]:
    """Make complete pictures from the fields of interlaced frames (FFmpeg's filter bwdif). Other frames pass unchanged.

    Args:
        frames: decoded frames; anything that comes with a frame stays with it.
    """
    graph: av.filter.Graph | None = None
    kind = None
    waiting: deque[Any] = deque()
    for number, (label, frame) in enumerate(frames):
        if graph is not None and kind != (frame.width, frame.height, frame.format.name):
            yield from _rest(graph, waiting)
            graph = None
        if graph is None:
            if not frame.interlaced_frame:
                yield label, frame
                continue
            kind = (frame.width, frame.height, frame.format.name)
            graph = _bwdif(frame)
        # The filter's times are only numbers: the file's own times may be damaged.
        frame.pts, frame.time_base = number, Fraction(1, 1)
        waiting.append(label)
        graph.push(frame)
        yield from _finished(graph, waiting)
    if graph is not None:
        yield from _rest(graph, waiting)


def _bwdif(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1))
    bwdif, sink = graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    source.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()
    return graph


def _finished(graph: av.filter.Graph, waiting: deque[Any]) -> Iterator[tuple[Any, av.VideoFrame]]:
    while waiting:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield waiting.popleft(), frame


def _rest(graph: av.filter.Graph, waiting: deque[Any]) -> Iterator[tuple[Any, av.VideoFrame]]:
    graph.push(None)
    yield from _finished(graph, waiting)


class Pictures:
    """Converts the frames of one stream to RGB `[H, W, 3]`.

    Transparent pictures are laid on white. HDR is mapped to the colours and the brightness of a usual screen. If pixels
    are not square, the picture is stretched in one direction, so no detail is lost. The rotation and the mirroring that
    the file states are applied.
    """

    def __init__(self, pixel_shape: Fraction | None, deep: bool) -> None:
        """Make a converter.

        Args:
            pixel_shape: width of a pixel divided by its height; None if the file does not state it.
            deep: True makes float32 in [0, 1], decoded with 16 bits per channel; False makes uint8.
        """
        self._pixel_shape, self._deep = pixel_shape, deep
        self._reformatter = VideoReformatter()  # keeps its tables from frame to frame
        self._rotation: int | None = None
        self._turn = _NO_TURN

    def rgb(self, frame: av.VideoFrame, transfer: int, longest: int | None = None) -> Tensor:
        """Convert a frame.

        Args:
            frame: the decoded frame.
            transfer: FFmpeg's number of the transfer function.
            longest: the longest side of the result in pixels, to which larger frames are reduced by averaging; None
                keeps their size.
        """
        width, height = _shown_size(frame, self._pixel_shape)
        if is_reduced := longest is not None and longest < max(width, height):
            shrink = longest / max(width, height)
            width, height = max(1, round(width * shrink)), max(1, round(height * shrink))
        hdr, alpha = transfer in HDR_TRANSFERS, _has_alpha(frame)
        wide = self._deep or hdr
        converted = self._reformatter.reformat(
            frame,
            format=("rgba64le" if alpha else "rgb48le") if wide else ("rgba" if alpha else "rgb24"),
            width=width,
            height=height,
            # Some versions of PyAV ignore what the frame states unless both sides are given.
            src_colorspace=_colour_matrix(frame, hdr),
            dst_colorspace=_BT709,
            src_color_range=frame.color_range,
            dst_color_range=_FULL_RANGE,
            interpolation=AVERAGED if is_reduced else EXACT,
        )
        pixels: NDArray[np.generic] = converted.to_ndarray()
        if wide or alpha:
            unit = pixels.astype(np.float32) / np.float32(65535 if wide else 255)
            colours = to_sdr(unit[..., :3], transfer) if hdr else unit[..., :3]
            if alpha:
                opacity = unit[..., 3:]
                colours = colours * opacity + (1 - opacity)
            pixels = colours if self._deep else (colours * 255).round().astype(np.uint8)
        # PyAV keeps frames in memory for a while after their side data was read. So it is read only after a change.
        if frame.rotation != self._rotation:
            self._rotation, self._turn = frame.rotation, _turn(frame)
        transposed, down, right = self._turn
        upright = (pixels.swapaxes(0, 1) if transposed else pixels)[::down, ::right]
        return torch.from_numpy(np.ascontiguousarray(upright))


def _has_alpha(frame: av.VideoFrame) -> bool:
    return frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)


def _colour_matrix(frame: av.VideoFrame, hdr: bool) -> int:
    """Return libswscale's number of a frame's colour matrix; if the frame states none, the one that players take."""
    if frame.colorspace in _MATRICES:
        return int(frame.colorspace)
    if frame.colorspace == _UNSPECIFIED and hdr:
        return _BT2020
    hd = frame.width > _SD_WIDTH or frame.height > _SD_HEIGHT
    return _BT709 if frame.colorspace == _UNSPECIFIED and hd else _BT601


def _shown_size(frame: av.VideoFrame, pixel_shape: Fraction | None) -> tuple[int, int]:
    """Return the width and height of a frame with square pixels. Even sides stay even, as encoders need them."""
    shape = pixel_shape or Fraction(1)
    if not Fraction(1, _MOST_STRETCH) <= shape <= _MOST_STRETCH:
        shape = Fraction(1)
    width, height = frame.width, frame.height
    if shape > 1:
        width = _stretched(width, shape)
    elif shape < 1:
        height = _stretched(height, 1 / shape)
    return width, height


def _stretched(side: int, factor: Fraction) -> int:
    return round(side * factor) if side % 2 else 2 * round(side * factor / 2)


def _turn(frame: av.VideoFrame) -> tuple[bool, int, int]:
    """Return how a picture is turned: whether rows become columns, and then the directions of rows and columns.

    The display matrix maps stored to shown places: `x' = ax + cy`, `y' = bx + dy` (ISO 14496-12, 6.2.2). Other angles
    are rounded to a quarter turn.
    """
    data = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return _NO_TURN
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].astype(int)
    transposed = bool(abs(a) + abs(d) < abs(b) + abs(c))
    right, down = (c, b) if transposed else (a, d)
    return transposed, -1 if down < 0 else 1, -1 if right < 0 else 1
