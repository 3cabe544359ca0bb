"""What the search computes once and shares: the float network's logits, and calibrations in two parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.observe.calibrate import calibrate, observe_graph
from resnet_export.calibration.observe.methods import METHODS
from resnet_export.calibration.observe.table import encode_table
from resnet_export.calibration.quantize.plan import QuantPlan
from resnet_export.calibration.search.evaluate import Evaluator, FloatRun, run_float
from resnet_export.calibration.search.improvements import TrialSetup, finish, start
from resnet_export.runtime.progress import silent
from tests.residual_net import images, residual_net


def photos(count: int) -> Photos:
    return Photos.of(images(count), None)


@given(st.data(), st.integers(1, 40))
def test_runs_on_both_parts_of_a_split_join_to_the_run_on_the_whole(data: st.DataObject, total: int) -> None:
    drawn = data.draw(st.integers(0, total))
    whole = Photos.of(np.arange(total, dtype=np.float32)[:, None], None)
    rest, held = (FloatRun(part, 2 * part.images) for part in whole.split(drawn))
    joined = FloatRun.join(whole, rest, held)
    np.testing.assert_array_equal(joined.logits, 2 * whole.images)
    part = joined.sample(data.draw(st.integers(1, total)))
    np.testing.assert_array_equal(part.logits, 2 * part.photos.images)


@pytest.mark.parametrize("whole", [False, True])
def test_a_calibration_in_two_parts_is_that_of_one_pass_bit_for_bit(whole: bool) -> None:
    model, fitted = residual_net(), photos(100)
    setup = TrialSetup(fitted, Evaluator(run_float(model, photos(4))), "minmax", 2, silent)
    begun = start(model, QuantPlan(), setup, whole=whole)
    assert (len(begun.seen), len(begun.rest)) == ((100, 0) if whole else (64, 36))
    candidate, run = finish(begun, setup)
    assert encode_table(candidate.table) == encode_table(calibrate(model, fitted.inputs(), methods=METHODS))
    np.testing.assert_allclose(run.logits, run_float(model, fitted).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_looks_come_in_the_order_of_the_images_whatever_the_threads(threads: int) -> None:
    x = images(9)
    found = observe_graph(
        residual_net(), [x[:4], x[4:]], look=lambda found: found["input"].copy(), threads=threads
    )
    np.testing.assert_array_equal(np.concatenate(found.looks), x)


def test_observations_merge_to_that_of_one_pass() -> None:
    model, x = residual_net(), images(9)

    def seen(part: np.ndarray) -> object:
        found = observe_graph(model, [part], look=lambda found: float(found["input"].sum()))
        return found.stats, found.data, found.images, found.looks

    merged = observe_graph(model, [x[:5]], look=lambda found: float(found["input"].sum())).merge(
        observe_graph(model, [x[5:]], look=lambda found: float(found["input"].sum()))
    )
    assert (merged.stats, merged.data, merged.images, merged.looks) == seen(x)
