"""What a parity check found: a frozen tree, and the JSON that is written of it.

The same bundle, data and machine give the same bytes, except under the one key `times`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from resnet_export.runtime.bundle.manifest import Manifest, Struct, Verdict, WeightsInfo
from resnet_export.runtime.errors import RequestError, SchemaError
from resnet_export.runtime.parity.attribution.layers import Layerwise
from resnet_export.runtime.parity.attribution.stages import Attribution
from resnet_export.runtime.parity.criteria.criterion import Criterion
from resnet_export.runtime.parity.criteria.table import CRITERIA, describe
from resnet_export.runtime.parity.measure.comparison import Comparison
from resnet_export.runtime.parity.measure.outputs import OutputFigures
from resnet_export.runtime.parity.report.search_report import SearchReport
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.precision import Precision, Tolerance

REPORT_SCHEMA = 1
SIGNIFICANT_DIGITS = 9
_NAMED = 3  # failures that the verdict's sentence spells out

Status = Literal["passed", "failed", "unverified"]


class ArtifactIdentity(Struct, frozen=True):
    """One artifact of the bundle, as its manifest describes it."""

    name: str
    kind: Literal["onnx", "engine"]
    precision: Precision
    target: str
    bytes: int


class BundleIdentity(Struct, frozen=True):
    """Which bundle was checked. `notices` are what the export had to say, such as that it is untrained."""

    arch: str
    num_classes: int
    weights: WeightsInfo
    exporter: Literal["dynamo", "torchscript", "onnx"]
    opset: int
    golden: str
    notices: tuple[str, ...]
    artifacts: tuple[ArtifactIdentity, ...] = ()


class Check(Struct, frozen=True):
    """One artifact on one backend against one reference on one set of images.

    `images` is "golden" or "data"; `reference` is "eager" for the golden images, and what `ParitySpec.reference`
    says for data; `reference_error` is then the reference's own relative error against eager on the golden
    images. `batches` are the sizes of the full batches that golden images were run in once more.
    `is_reference` says that the run is itself the reference, and only its accuracy was decided on.
    """

    images: Literal["golden", "data"]
    reference: str
    reference_error: float | None
    comparison: Comparison
    criteria: tuple[Criterion, ...]
    batches: tuple[int, ...] = ()
    is_reference: bool = False

    @property
    def passed(self) -> bool:
        """Whether every criterion holds."""
        return all(criterion.passed for criterion in self.criteria)


class OutputCheck(Struct, frozen=True):
    """A further output of one artifact on one backend, on the golden images that it is recorded on.

    `figures` are against the eager network's; `criteria` are held to the limits of the logits, those of the
    probabilities against what the artifact's own logits make.
    """

    name: str
    figures: OutputFigures
    criteria: tuple[Criterion, ...]

    @property
    def passed(self) -> bool:
        """Whether every criterion holds."""
        return all(criterion.passed for criterion in self.criteria)


class Entry(Struct, frozen=True):
    """One artifact that ran on one backend.

    `declared` is the artifact's precision and `ran` what the backend really computed in; the limits in
    `tolerance` are those of `held_to`, the coarser of the two. `simulated` says in words when the numbers
    are those of `ran` but the speed is not, and is None otherwise. `error` is what the backend said when it
    could not open or run the artifact; then checks are missing and the entry has not passed. Nor has one with a
    `refusal`, which is the artifact's own. `outputs` are the bundle's outputs besides the logits.
    """

    artifact: str
    sha256: str
    backend: str
    provider: str
    version: str | None
    device: str
    declared: Precision
    ran: Precision
    held_to: Precision
    simulated: str | None
    tolerance: Tolerance
    notes: tuple[str, ...]
    checks: tuple[Check, ...]
    attribution: Attribution | None
    error: str | None
    refusal: str | None = None
    outputs: tuple[OutputCheck, ...] = ()

    @property
    def key(self) -> str:
        """What tells the entry from all others of the report: "int8@openvino:CPU/int8"."""
        return entry_key(self.artifact, self.backend, self.provider, self.ran)

    @property
    def title(self) -> str:
        """The entry in words: "fp16 on onnxruntime", "fp32 on openvino in bf16", "fp16 on onnxruntime gpu:0"."""
        return f"{self.artifact} on {self.place}"

    @property
    def place(self) -> str:
        """Where the artifact ran, in words: "openvino in bf16"."""
        device = "" if self.device == "cpu" else f" {self.device}"
        arithmetic = "" if self.ran is self.declared else f" in {self.ran}"
        return f"{self.backend}{device}{arithmetic}"

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """Every criterion of the logits and of the further outputs."""
        held: tuple[Check | OutputCheck, ...] = (*self.checks, *self.outputs)
        return tuple(criterion for check in held for criterion in check.criteria)

    @property
    def passed(self) -> bool:
        """Whether the artifact may be shipped, ran, was compared, and kept every limit."""
        ran = self.error is None and self.refusal is None and bool(self.checks)
        return ran and all(criterion.passed for criterion in self.criteria)

    def check(self, images: Literal["golden", "data"]) -> Check | None:
        """Return the check on these images, None when there was none."""
        return next((check for check in self.checks if check.images == images), None)


class Skipped(Struct, frozen=True):
    """An artifact that did not run on a backend, and why. Nothing is known about it: it has not passed.

    `declared` is the artifact's precision, `precision` what the backend would have computed in.
    """

    artifact: str
    declared: Precision
    backend: str
    provider: str
    precision: Precision
    reason: str


class Summary(Struct, frozen=True):
    """The verdict. `exit_code` is 0 passed, 1 outside a tolerance, 2 nothing ran that was to be verified.

    `sentence` says it whole; `headline` is its first clause and `findings` are the clauses behind it, the stage to look
    at among them. `stage` names the step that a failure points to (`failing_stage`), None where there is none.
    """

    status: Status
    sentence: str
    headline: str
    findings: tuple[str, ...]
    exit_code: int
    stage: str | None = None


class ParityReport(Struct, frozen=True):
    """The whole of a parity check.

    `unverified` are artifacts that ran on no backend; they stand apart from those that passed. `versions` are of the
    packages that took part. `int8` is what the search for the INT8 graphs did, in the report of an export that made
    some. `layerwise` are the layers of artifacts that failed or whose layers were asked for. `preprocessing` says
    whether this host preprocesses as the export did, and is empty where the bundle has no sample of that.
    `class_names` are the labels of the classes between which predictions changed. `times` holds everything that
    changes from run to run: `started` (UTC, ISO 8601), `seconds` in all, and per entry key the seconds that its
    backend spent running.
    """

    schema: Literal[1]
    bundle: BundleIdentity
    asked: ParitySpec
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]
    unverified: tuple[str, ...]
    notes: tuple[str, ...]
    verdict: Summary
    versions: dict[str, str]
    times: dict[str, Any]
    preprocessing: tuple[Criterion, ...] = ()
    int8: SearchReport | None = None
    layerwise: tuple[Layerwise, ...] = ()
    class_names: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """The process exit code: 0, 1 or 2, see `Summary`."""
        return self.verdict.exit_code

    @property
    def amber(self) -> bool:
        """Whether everything that ran has passed, and something did not run."""
        return self.verdict.status == "passed" and bool(self.unverified)

    def verdicts(self, artifact: str) -> tuple[Verdict, ...]:
        """Return what `Artifact.parity` of the manifest records of one artifact."""
        return tuple(
            Verdict(
                backend=entry.backend,
                provider=entry.provider,
                precision=entry.ran,
                passed=entry.passed,
                detail=_detail(entry),
            )
            for entry in self.entries
            if entry.artifact == artifact
        )


def entry_key(artifact: str, backend: str, provider: str, precision: Precision) -> str:
    """Return the name of an entry that is unique in its report."""
    return f"{artifact}@{backend}:{provider}/{precision}"


def identity(manifest: Manifest) -> BundleIdentity:
    """Return what a report says about the bundle of `manifest`."""
    source = "the bundled photographs" if manifest.golden.source == "bundled" else "the calibration images"
    return BundleIdentity(
        arch=manifest.model.arch,
        num_classes=manifest.model.num_classes,
        weights=manifest.model.weights,
        exporter=manifest.provenance.exporter,
        opset=manifest.provenance.opset,
        golden=f"{manifest.golden.count} golden images, {source}",
        notices=manifest.provenance.notices,
        artifacts=tuple(
            ArtifactIdentity(
                name=artifact.name,
                kind=artifact.kind,
                precision=artifact.precision,
                target=artifact.target,
                bytes=artifact.bytes,
            )
            for artifact in manifest.artifacts
        ),
    )


def summarize(
    entries: tuple[Entry, ...],
    unverified: tuple[str, ...],
    unmet: tuple[str, ...] = (),
    preprocessing: tuple[Criterion, ...] = (),
    stage: str | None = None,
    hint: str = "",
    cause: str = "",
) -> Summary:
    """Return the verdict over `entries` and the criteria of `preprocessing`; `stage` is what a failure points to.

    `hint` is a clause that says more of the stage, and `cause` the most that is known of where a failure begins, such
    as a layer: with that the headline begins. Where data are too few for the limit on accuracy that was
    asked for, the sentence of a pass says so.

    Artifacts in `unverified`, which nothing here could run, are named and the rest decides; but where
    nothing ran, nothing has passed. What was asked for by name and did not run (`unmet`) is an error of the
    request.
    """
    failed = [entry for entry in entries if not entry.passed]
    missing = (
        [f"Not verified here, since nothing could run them: {', '.join(unverified)}"] if unverified else []
    )
    runs = f"{len(entries)} artifact run{'' if len(entries) == 1 else 's'}"
    drifted = [describe(criterion) for criterion in preprocessing if not criterion.passed]
    if failed or drifted:
        named = [f"{entry.title} ({failure(entry)})" for entry in failed[:_NAMED]]
        if len(failed) > _NAMED:
            named.append(f"and {len(failed) - _NAMED} more")
        counted = f"{len(failed)} of {runs} outside tolerance"
        headline = f"probable cause {cause}; {counted}" if cause and not drifted else counted
        what = f"{headline}{': ' if named else ''}{'; '.join(named)}"
        if drifted:
            named = [headline, *named] if failed else []
            headline = f"preprocessing is not the export's ({', '.join(drifted)})"
            what = f"{headline}; {what}" if failed else headline
        look = [] if stage is None else [f"First stage to look at: {stage}{', ' if hint else ''}{hint}"]
        return Summary(
            status="failed",
            sentence=f"FAILED: {'. '.join([what, *look, *missing])}.",
            headline=headline,
            findings=(*named, *look, *missing),
            exit_code=1,
            stage=stage,
        )
    if not entries or unmet:
        word, code = "NOT VERIFIED", 2
        headline = f"{runs if entries else 'nothing'} checked"
        findings = [f"Requested and skipped: {', '.join(unmet)}"] if unmet else []
    else:
        word, code, findings = "PASSED", 0, []
        doubt = _doubt(entries)
        headline = f"{runs} checked, all within tolerance{', but ' if doubt else ''}{doubt}"
    return Summary(
        status="unverified" if code else "passed",
        sentence=f"{word}: {'. '.join([headline, *findings, *missing])}.",
        headline=headline,
        findings=(*findings, *missing),
        exit_code=code,
    )


def _doubt(entries: tuple[Entry, ...]) -> str:
    """Say what the data cannot tell about a limit that was asked for, for the least certain of the runs."""
    found = []
    for entry in entries:
        for check in entry.checks:
            for criterion in check.criteria:
                row = CRITERIA.get(criterion.name)
                labeled = check.comparison.labeled
                if row is not None and row.unresolved is not None and labeled is not None:
                    found.append(row.unresolved(labeled, criterion.limit))
    return max((doubt for doubt in found if doubt is not None), default=(0, ""), key=lambda doubt: doubt[0])[
        1
    ]


def failure(entry: Entry) -> str:
    """Return why an entry failed, in one clause: its error, its refusal, or its criteria that do not hold."""
    if entry.error is not None:
        return entry.error
    broken = [] if entry.refusal is None else [entry.refusal]
    broken += [
        f"{'' if check.images == 'golden' else 'on data, '}{describe(criterion)}"
        for check in entry.checks
        for criterion in check.criteria
        if not criterion.passed
    ]
    broken += [
        f"{output.name}: {describe(criterion)}"
        for output in entry.outputs
        for criterion in output.criteria
        if not criterion.passed
    ]
    return ", ".join(broken) or "no check was made"


def class_names(entries: tuple[Entry, ...], labels: Sequence[str]) -> dict[str, str]:
    """Return the labels of the classes that images changed from or to, by index."""
    flips = [flip for entry in entries for check in entry.checks for flip in check.comparison.flips]
    classes = {index for flip in flips for index in (flip.reference, flip.candidate, flip.label)}
    return {
        str(index): labels[index]
        for index in sorted(found for found in classes if found is not None and found >= 0)
    }


def encode_report(report: ParityReport) -> bytes:
    """Return `report.json`: keys sorted, floats with nine significant digits, a final newline."""
    return (
        msgspec.json.format(
            msgspec.json.encode(_rounded(msgspec.to_builtins(report)), order="sorted"), indent=2
        )
        + b"\n"
    )


def decode_report(data: bytes) -> ParityReport:
    """Read `report.json`. Raises SchemaError."""
    try:
        return msgspec.json.decode(data, type=ParityReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RequestError) as error:
        raise SchemaError(
            f"the report is not understood ({error}); this version reads schema {REPORT_SCHEMA}: "
            "run the check again"
        ) from error


def _rounded(value: Any) -> Any:
    # What is left of rounding differs between machines in the last digits of a float64, and nobody reads
    # them.
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def _detail(entry: Entry) -> str:
    if not entry.passed:
        return failure(entry)[:1000]
    golden = entry.check("golden")
    figures = golden.comparison.figures if golden else None
    if figures is None or figures.centered_cosine is None or figures.relative_error is None:
        return ""
    return (
        f"relative error {figures.relative_error:.2g}, centered cosine similarity {figures.centered_cosine:.6f}, "
        f"{figures.top1} of {figures.decided} agree"
    )
