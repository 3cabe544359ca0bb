"""The report on a terminal: what stands behind the answer first, the answer last, where the eye rests.

The words and cells made here serve the Markdown report too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from resnet_export.runtime.parity.attribution.layers import titled
from resnet_export.runtime.parity.criteria.table import describe
from resnet_export.runtime.parity.measure.comparison import printable
from resnet_export.runtime.parity.report.answer import caveats, headers, recommendations, table
from resnet_export.runtime.parity.report.schema import Check, Entry, OutputCheck, ParityReport, Skipped
from resnet_export.runtime.parity.report.search_text import sentences
from resnet_export.runtime.text_table import text_table, wrapped

HEADERS = (
    "artifact",
    "backend",
    "rel. error",
    "centered cosine",
    "top-1 agreement",
    "accuracy",
    "drop, points",
    "verdict",
)


def render(report: ParityReport) -> str:
    """Return the report as plain text, ending with the verdict's sentence and a newline."""
    bundle = report.bundle
    lines = [f"Parity of {bundle.arch} ({bundle.num_classes} classes, {weights(report)})"]
    for title, checked in sections(report):
        lines += ["", wrapped(title), _table([row(entry, check) for entry, check in checked])]
    for title, items in details(report):
        if title == "Skipped":
            items = list(_skipped_in_brief(report))
        lines += ["", f"{title}:", *(wrapped(f"  {item}", "    ") for item in items)]
    return "\n".join([*lines, "", answer(report)]) + "\n"


def answer(report: ParityReport) -> str:
    """Return the answer alone: a row for each artifact, what to run where, and the verdict's sentence."""
    rows = table(report)
    lines = [text_table(headers(report), rows), ""] if rows else []
    sentences = [*recommendations(report), *caveats(report)]
    return "\n".join([*lines, *map(wrapped, [*sentences, report.verdict.sentence])])


def weights(report: ParityReport) -> str:
    """Return where the parameters came from, in words."""
    found = report.bundle.weights
    return f"untrained, seed {found.seed}" if found.source == "untrained" else found.name


def sections(report: ParityReport) -> Iterator[tuple[str, list[tuple[Entry, Check]]]]:
    """Yield each set of images that was used, in words, and the checks on it."""
    for images, name in (("golden", report.bundle.golden), ("data", report.asked.data)):
        checked = [
            (entry, check) for entry in report.entries for check in entry.checks if check.images == images
        ]
        if not checked:
            continue
        check = checked[0][1]
        figures = check.comparison.figures
        title = (
            f"Against {check.reference} on {name}"
            f"{'' if images == 'golden' else f' ({figures.images} images)'}; "
            f"it predicts {figures.reference_classes} of {figures.classes} classes"
        )
        if check.reference_error is not None:
            title += f", and differs from eager by {check.reference_error:.1e} itself"
        yield title, checked


def details(report: ParityReport) -> Iterator[tuple[str, list[str]]]:
    """Yield the lists that stand below the tables, with their titles; those that are empty are left out."""
    attributions = (entry.attribution for entry in report.entries)
    for title, items in (
        ("Outside tolerance", _failures(report)),
        ("Outputs", _outputs(report)),
        ("Error attribution", (found.sentence for found in attributions if found)),
        ("Layers", _layers(report)),
        ("Images furthest from the reference", _worst(report)),
        ("INT8", () if report.int8 is None else sentences(report.int8)),
        ("Notes", _notes(report)),
        ("Skipped", _skipped(report)),
    ):
        listed = list(items)
        if listed:
            yield title, listed


def row(entry: Entry, check: Check) -> tuple[str, ...]:
    """Return the cells of one check, in the order of `HEADERS`."""
    figures, labeled = check.comparison.figures, check.comparison.labeled
    drop = None if labeled is None else labeled.drop_interval_points
    return (
        entry.artifact,
        f"{entry.place}{', simulated' if entry.simulated else ''}",
        "–" if figures.relative_error is None else f"{figures.relative_error:.1e}",
        "–" if figures.centered_cosine is None else f"{figures.centered_cosine:.6f}",
        _agreement(check),
        "" if labeled is None else f"{100 * labeled.candidate_accuracy:.2f} %",
        ""
        if labeled is None or drop is None
        else f"{labeled.drop_points:.2f} ({drop.low:.2f} to {drop.high:.2f})",
        verdict(check),
    )


def named(report: ParityReport, index: int) -> str:
    """Return a class with its label: "207 (golden retriever)"; "none" for logits that are not finite."""
    if index < 0:
        return "none"
    name = report.class_names.get(str(index))
    return str(index) if name is None or name == str(index) else f"{index} ({printable(name)})"


def verdict(check: Check) -> str:
    """Return "pass", "FAIL", or "reference" for the reference's own row on validation images."""
    if not check.passed:
        return "FAIL"
    return "reference" if check.is_reference else "pass"


def grouped(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield "who, who: what" for pairs (who, what), each `what` once, in the order of its first mention."""
    by_text: dict[str, list[str]] = {}
    for who, what in pairs:
        by_text.setdefault(what, []).append(who)
    for what, named in by_text.items():
        yield f"{', '.join(dict.fromkeys(named))}: {what}"


def _table(rows: list[tuple[str, ...]]) -> str:
    shown = [i for i in range(len(HEADERS)) if any(cells[i] for cells in rows)]
    return text_table([HEADERS[i] for i in shown], [[cells[i] for i in shown] for cells in rows])


def _agreement(check: Check) -> str:
    figures, interval = check.comparison.figures, check.comparison.top1_interval
    text = f"{100 * figures.top1_agreement:.1f} % ({100 * interval.low:.1f}–{100 * interval.high:.1f})"
    if figures.near_tie_flips:
        text += f", {figures.near_tie_flips} near tie{'s' if figures.near_tie_flips > 1 else ''}"
    return text


def _layers(report: ParityReport) -> Iterator[str]:
    """Yield where each artifact diverges first, and the layers that are the furthest beyond what is explained."""
    for found in report.layerwise:
        yield found.sentence
        for place, layer in enumerate(found.worst, 1):
            figure = "" if layer.local_error is None else f"error {layer.local_error:.1e} by itself"
            yield f"{found.artifact}, worst {place}: {titled(layer)}: {layer.reason or figure}"
        yield from (f"{found.artifact}: {note}" for note in found.notes)


def _worst(report: ParityReport) -> Iterator[str]:
    """Yield the images furthest from the reference where a handful owns the energy of the logits."""
    for entry in report.entries:
        for check in entry.checks:
            if any(criterion.name == "median_error" for criterion in check.criteria):
                where = "golden images" if check.images == "golden" else report.asked.data
                named = ", ".join(image.sentence for image in check.comparison.worst)
                yield f"{entry.title}, {where}: {named}"


def _failures(report: ParityReport) -> Iterator[str]:
    for criterion in report.preprocessing:
        if not criterion.passed:
            yield f"preprocessing: {describe(criterion)} ({criterion.detail})"
    for entry in report.entries:
        if entry.error is not None:
            yield f"{entry.title} {entry.error}"
        if entry.refusal is not None:
            yield f"{entry.title}: {entry.refusal}"
        for check in entry.checks:
            where = "golden images" if check.images == "golden" else report.asked.data
            for criterion in check.criteria:
                if not criterion.passed:
                    detail = f" ({criterion.detail})" if criterion.detail else ""
                    yield f"{entry.title}, {where}: {describe(criterion)}{detail}"
        for output in entry.outputs:
            for criterion in output.criteria:
                if not criterion.passed:
                    detail = f" ({criterion.detail})" if criterion.detail else ""
                    yield f"{entry.title}, output {output.name}: {describe(criterion)}{detail}"


def _outputs(report: ParityReport) -> Iterator[str]:
    """Yield, for each run, how far its further outputs are, on the golden images that they are recorded on."""
    for entry in report.entries:
        if entry.outputs:
            yield f"{entry.title}: relative error of {', '.join(map(_output, entry.outputs))}"


def _output(output: OutputCheck) -> str:
    error = output.figures.relative_error
    return f"{output.name} {'undefined' if error is None else f'{error:.1e}'}{'' if output.passed else ' (FAIL)'}"


def _notes(report: ParityReport) -> Iterator[str]:
    yield from report.notes
    yield from grouped((entry.title, entry.simulated) for entry in report.entries if entry.simulated)
    yield from grouped((entry.title, note) for entry in report.entries for note in entry.notes)


def _skipped(report: ParityReport) -> Iterator[str]:
    yield from grouped(map(_reason, report.skipped))


def _skipped_in_brief(report: ParityReport) -> Iterator[str]:
    """Yield why an artifact ran nowhere; that others could run elsewhere too takes one line."""
    yield from grouped(_reason(item) for item in report.skipped if item.artifact in report.unverified)
    others = sum(item.artifact not in report.unverified for item in report.skipped)
    if others:
        yield f"{others} runs on backends that this host has not; the other forms of the report list them"


def _reason(item: Skipped) -> tuple[str, str]:
    who = item.artifact if item.precision is item.declared else f"{item.artifact} in {item.precision}"
    return who, f"{item.backend} ({item.provider}) {item.reason}"
