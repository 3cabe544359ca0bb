"""The outputs besides the logits, of one run, on the golden images that they are recorded on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.bundle.golden import Golden
from resnet_export.runtime.bundle.manifest import LOGITS
from resnet_export.runtime.bundle.schema import PROBABILITIES
from resnet_export.runtime.parity.criteria.criterion import Criterion, at_least, at_most
from resnet_export.runtime.parity.measure.metrics import relative_error
from resnet_export.runtime.parity.measure.outputs import OutputFigures, output_figures
from resnet_export.runtime.parity.plan import Opened
from resnet_export.runtime.parity.report.schema import OutputCheck
from resnet_export.runtime.precision import Tolerance
from resnet_export.runtime.prediction import ACTIVATIONS
from resnet_export.runtime.preprocess import to_input

__all__ = ["check_outputs"]


def check_outputs(session: Opened, tolerance: Tolerance, golden: Golden) -> tuple[OutputCheck, ...]:
    """Run the golden images once more for every output but the logits, and hold each to the limits of the precision.

    Probabilities are a function of the logits, which have limits of their own: they are held to what the artifact's
    own logits make. Raises BackendError.
    """
    if not golden.outputs:
        return ()
    found = _run(session, golden)
    activate = ACTIVATIONS[session.manifest.model.activation]
    checks = []
    for name, reference in golden.outputs.items():
        values = found[name][: len(reference)]
        figures = output_figures(reference, values)
        if name == PROBABILITIES:
            error = relative_error(values, activate(found[LOGITS])[: len(reference)])
            criteria = tuple(_probabilities(figures, error, tolerance))
        else:
            criteria = tuple(_criteria(figures, tolerance))
        checks.append(OutputCheck(name=name, figures=figures, criteria=criteria))
    return tuple(checks)


def _run(session: Opened, golden: Golden) -> dict[str, NDArray[np.float32]]:
    """Return the outputs by name, each on as many images as it is recorded on; the logits on all of these."""
    manifest = session.manifest
    count = max(map(len, golden.outputs.values()))
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for start in range(0, count, manifest.batch.opt):
        images = golden.images[start : min(start + manifest.batch.opt, count)]
        wanted = [name for name, values in golden.outputs.items() if start < len(values)]
        batch = to_input(images, manifest.preprocessing)
        for name, values in session.run_outputs(batch, (LOGITS, *wanted)).items():
            kept = len(golden.outputs[name]) - start if name in golden.outputs else len(values)
            parts.setdefault(name, []).append(values[:kept])
    return {name: np.concatenate(values) for name, values in parts.items()}


def _criteria(figures: OutputFigures, tolerance: Tolerance) -> Iterator[Criterion]:
    yield at_most("finite", figures.non_finite, 0)
    if tolerance.relative_error is not None:
        yield at_most("relative_error", figures.relative_error, tolerance.relative_error, "‖a−b‖/‖b‖")
    if tolerance.centered_cosine is not None and figures.centered_cosine is not None:
        yield at_least("centered_cosine", figures.centered_cosine, tolerance.centered_cosine)


def _probabilities(figures: OutputFigures, error: float | None, tolerance: Tolerance) -> Iterator[Criterion]:
    yield at_most("finite", figures.non_finite, 0)
    if tolerance.relative_error is not None:
        detail = "‖a−b‖/‖b‖ to what the artifact's own logits make"
        yield at_most("relative_error", error, tolerance.relative_error, detail)
