"""The report as JUnit XML, which every CI system reads: one test case per artifact × backend × criterion.

The elements and attributes are those of the schema that Jenkins publishes (junit-10.xsd of its xunit
plugin), which GitLab, GitHub actions and pytest's own reports share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from resnet_export.runtime.parity.criteria.criterion import Criterion
from resnet_export.runtime.parity.criteria.table import describe
from resnet_export.runtime.parity.report.schema import Check, Entry, ParityReport
from resnet_export.runtime.parity.report.text import details, named

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def render(report: ParityReport) -> bytes:
    """Return the report as a UTF-8 JUnit document.

    A criterion that does not hold is a failure; an artifact that a backend could not open or run is an
    error; one that nothing on this host could run is skipped, with the reason. An artifact that was asked
    for by name and ran nowhere, like a report without any entry, is an error too, so that CI does not take
    it for success. The suite's output holds the notes.
    """
    from xml.etree import ElementTree

    suites = ElementTree.Element("testsuites", name="parity")
    suite = ElementTree.SubElement(suites, "testsuite", name=f"parity.{_clean(report.bundle.arch)}")
    cases = [
        *_preprocessing_cases(report),
        *_entry_cases(report),
        *_skipped_cases(report),
        *_unverified_case(report),
    ]
    suite.extend(cases)
    notes = dict(details(report)).get("Notes", [])
    if notes:
        _child(suite, "system-out", "\n".join(notes))
    totals = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
    }
    seconds = f"{float(report.times.get('seconds', 0.0)):.3f}"
    suites.attrib.update(totals, time=seconds)
    skipped = sum(case.find("skipped") is not None for case in cases)
    suite.attrib.update(totals, skipped=str(skipped), time=seconds)
    if "started" in report.times:
        suite.set("timestamp", str(report.times["started"]))
    ElementTree.indent(suites)
    data: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _preprocessing_cases(report: ParityReport) -> Iterator[Element]:
    for criterion in report.preprocessing:
        case = _element("testcase")
        case.set("classname", "preprocessing")
        case.set("name", criterion.name)
        yield _decided(case, criterion, f"preprocessing: {describe(criterion)} ({criterion.detail})")


def _entry_cases(report: ParityReport) -> Iterator[Element]:
    for entry in report.entries:
        layers = tuple(found.sentence for found in report.layerwise if found.artifact == entry.artifact)
        if entry.error is not None:
            case = _case(entry, "runs")
            _child(case, "error", entry.error, "backend")
            yield case
        if entry.refusal is not None:
            case = _case(entry, "shippable")
            _child(case, "failure", f"{entry.title}: {entry.refusal}", "refusal")
            yield case
        for check in entry.checks:
            for criterion in check.criteria:
                yield _criterion_case(report, entry, check, criterion, layers)
        for output in entry.outputs:
            for criterion in output.criteria:
                case = _case(entry, f"{output.name}.{criterion.name}")
                text = f"{entry.title}, output {output.name}: {describe(criterion)}"
                yield _decided(case, criterion, text)


def _criterion_case(
    report: ParityReport, entry: Entry, check: Check, criterion: Criterion, layers: tuple[str, ...]
) -> Element:
    case = _case(entry, f"{check.images}.{criterion.name}")
    text = f"{entry.title}: {describe(criterion)}"
    if criterion.detail:
        text += f" ({criterion.detail})"
    body = (
        () if criterion.passed else (report.verdict.headline, text, *_context(report, entry, check), *layers)
    )
    return _decided(case, criterion, text, body)


def _decided(case: Element, criterion: Criterion, text: str, body: Sequence[str] = ()) -> Element:
    """Put what was found of a criterion into its case, with `body` where it does not hold, and return the case."""
    if criterion.passed:
        _child(case, "system-out", text)
        return case
    failure = _child(case, "failure", text, "tolerance")
    if body:
        failure.text = _clean("\n".join(body))
    return case


def _context(report: ParityReport, entry: Entry, check: Check) -> Iterator[str]:
    yield f"reference: {check.reference}; device: {entry.device}"
    yield f"compute precision: {entry.ran}; held to the limits of: {entry.held_to}"
    if entry.attribution is not None:
        yield entry.attribution.sentence
    for flip in check.comparison.flips:
        yield f"flipped: {flip.name}: {named(report, flip.reference)} → {named(report, flip.candidate)}"


def _skipped_cases(report: ParityReport) -> Iterator[Element]:
    for item in report.skipped:
        case = _element("testcase")
        case.set("classname", _clean(f"{item.artifact}.{item.backend}.{item.provider}"))
        case.set("name", f"runs in {item.precision}")
        _child(case, "skipped", item.reason, "unavailable")
        yield case


def _unverified_case(report: ParityReport) -> Iterator[Element]:
    if report.verdict.status == "unverified":
        case = _element("testcase")
        case.set("classname", "parity")
        case.set("name", "verified")
        _child(case, "error", report.verdict.sentence, "unverified")
        yield case


def _case(entry: Entry, name: str) -> Element:
    case = _element("testcase")
    # Dots make the levels of the tree that CI systems show.
    case.set("classname", _clean(f"{entry.artifact}.{entry.backend}.{entry.provider}.{entry.ran}"))
    case.set("name", name)
    return case


def _child(parent: Element, tag: str, text: str, kind: str | None = None) -> Element:
    child = _element(tag)
    if kind is None:
        child.text = _clean(text)
    else:
        child.set("message", _clean(text))
        child.set("type", kind)
    parent.append(child)
    return child


def _element(tag: str) -> Element:
    from xml.etree import ElementTree

    return ElementTree.Element(tag)


def _clean(text: str) -> str:
    """Replace what XML 1.0 cannot hold (section 2.2, Char), which ElementTree would write all the same."""
    return "".join(character if _is_char(ord(character)) else "\ufffd" for character in text)


def _is_char(code: int) -> bool:
    return code in (0x9, 0xA, 0xD) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000
