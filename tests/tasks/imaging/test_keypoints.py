import numpy as np
import pytest

from tasks.imaging.keypoints import describe, mirrored, upside_down
from tests.fakes.pictures import picture

SHAPE = (240, 300)


def test_mirroring_keypoints_equals_looking_at_the_mirror_image():
    image = picture(5, SHAPE)[0]
    for turned_points, turned_image in (
        (mirrored(describe(image)), image[:, ::-1]),
        (upside_down(describe(image)), image[::-1]),
    ):
        seen = describe(np.ascontiguousarray(turned_image))
        order, expected = (np.lexsort((*p.xy.T.round(4), p.level)) for p in (turned_points, seen))
        assert turned_points.xy[order] == pytest.approx(seen.xy[expected], abs=1e-5)
        assert turned_points.vectors[order] == pytest.approx(seen.vectors[expected], abs=1e-3)
