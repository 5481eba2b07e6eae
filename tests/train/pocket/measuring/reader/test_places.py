"""The places of a face's parts: they invert the coordinates that the renderer paints with."""

import numpy as np
import pytest

from magicdistill_core.pocket.face import _unturned
from magicdistill_core.pocket.painting import Canvas
from magicdistill_core.pocket.pose import in_head, pose_at
from magicdistill_core.pocket.render import frame_times, portrait
from train.pocket.measuring.reader.places import places_of

SIZE, FRAMES = 96, 17


@pytest.mark.parametrize("seed", range(6))
def test_eyes_and_mouth_are_where_the_renderer_paints_them(seed: int) -> None:
    spec = portrait(seed)
    pose = pose_at(spec, frame_times(FRAMES))
    fu, fv = _unturned(spec, pose, *in_head(Canvas(FRAMES, SIZE), pose, spec))
    pixel = 2 / SIZE / spec.head_size
    for frame, places in enumerate(places_of(spec, pose, SIZE)):
        mouth = spec.mouth_level + 0.3 * float(pose.mouth[frame, 0, 0])
        for (x, y), (u, v) in (
            (places.left_eye, (-spec.eye_spread, spec.eye_level)),
            (places.right_eye, (spec.eye_spread, spec.eye_level)),
            (places.mouth, (0.0, mouth)),
        ):
            row, column = round(y), round(x)
            # The nearest pixel is at most half a pixel away in both axes. A turned face is narrower, so a pixel of the
            # picture is up to 1.3 pixels of the face.
            assert abs(fu[frame, row, column] - u) < 0.75 * pixel
            assert abs(fv[frame, row, column] - v) < 0.75 * pixel


def test_the_outline_of_a_bald_head_is_the_border_of_its_skin() -> None:
    spec = next(found for found in map(portrait, range(200)) if found.hair_style == "bald")
    pose = pose_at(spec, frame_times(1))
    (places,) = places_of(spec, pose, SIZE)
    u, v = in_head(Canvas(1, SIZE), pose, spec)
    for x, y in places.outline.tolist():
        if 0 <= round(x) < SIZE and 0 <= round(y) < SIZE:
            at_u, at_v = u[0, round(y), round(x)], v[0, round(y), round(x)]
            width = spec.head_width * (1 - spec.jaw * np.clip(at_v, 0, 1.2) ** 2)
            assert np.hypot(at_u / width, at_v) == pytest.approx(1, abs=0.06)
