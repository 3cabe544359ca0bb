from __future__ import annotations

import numpy as np

from tests.natural_crops import natural_crops


def test_natural_crops_are_decided_by_their_seed() -> None:
    one = natural_crops(20, 32, seed=3)
    assert one.dtype == np.uint8
    assert one.shape == (20, 32, 32, 3)
    np.testing.assert_array_equal(one, natural_crops(20, 32, seed=3))
    assert not np.array_equal(one, natural_crops(20, 32, seed=4))


def test_natural_crops_are_all_different() -> None:
    crops = natural_crops(500, 16, seed=0)
    assert len({crop.tobytes() for crop in crops}) == 500


def test_no_crops_are_no_crops() -> None:
    assert natural_crops(0, 16, seed=0).shape == (0, 16, 16, 3)
