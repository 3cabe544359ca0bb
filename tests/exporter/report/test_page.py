"""What the page says, read by an HTML parser: complete, deterministic, small, and honest about what is missing."""

from __future__ import annotations

import dataclasses
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest

from resnet_export.exporter.report import Material, gather, render
from resnet_export.exporter.report import page as page_module
from resnet_export.exporter.report.charts.section import Row, Section, Shown, Table
from resnet_export.exporter.report.charts.speed import milliseconds
from resnet_export.exporter.report.flipped_images import SIDE as THUMBNAIL
from resnet_export.exporter.report.page import CHARTS, command
from resnet_export.exporter.report.report_data import SHOWN, flipped
from resnet_export.runtime.errors import BundleError
from resnet_export.runtime.parity.criteria.table import CRITERIA, bound, title
from resnet_export.runtime.parity.measure.comparison import compare
from resnet_export.runtime.parity.report.schema import Check, ParityReport, decode_report, encode_report
from tests.parity_bundle import graph, write
from tests.parity_page import archive, checked, damaged_bundle, table, with_layers
from tests.tiny_bundle import FP16, FP32

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Collects texts by the id of the section around them, and every tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.texts: dict[str, str] = {}
        self.open: list[str] = []
        self._section = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.append((tag, found))
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "section":
            self._section = str(found["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        self.texts[self._section] = f"{self.texts.get(self._section, '')} {data}"

    def text(self, section: str) -> str:
        return " ".join(self.texts[section].split())


def read(page: bytes) -> Reader:
    reader = Reader()
    reader.feed(page.decode())
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damaged_bundle(tmp_path_factory.mktemp("damaged") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(tmp_path_factory.mktemp("data"), 100)


@pytest.fixture(scope="module")
def report(bundle: Path, data: Path) -> ParityReport:
    return with_layers(checked(bundle, data))


@pytest.fixture(scope="module")
def material(bundle: Path, data: Path, report: ParityReport) -> Material:
    return dataclasses.replace(gather(bundle, report, data=data), table=table())


@pytest.fixture(scope="module")
def page(report: ParityReport, material: Material) -> bytes:
    return render(report, material)


def test_the_same_report_gives_the_same_bytes_whatever_the_user_set(
    report: ParityReport, material: Material, page: bytes
) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "path", "axes.facecolor": "red", "font.size": 40}):
        assert render(report, material) == page


def test_another_run_of_the_same_check_differs_in_times_alone(
    bundle: Path, data: Path, report: ParityReport, material: Material, page: bytes
) -> None:
    again = with_layers(checked(bundle, data))
    assert again.times != report.times
    assert render(msgspec.structs.replace(again, times=report.times), material) == page
    first, second = read(page), read(render(again, material))
    for section in first.texts.keys() - {"answer", "time", "provenance"}:  # the answer has milliseconds
        assert first.texts[section] == second.texts[section]


def test_the_page_of_a_stored_report_is_the_same(
    report: ParityReport, material: Material, page: bytes
) -> None:
    stored = decode_report(encode_report(report))
    assert read(render(stored, material)).text("runs") == read(page).text("runs")


def test_ids_are_unique_and_every_reference_has_its_target(page: bytes) -> None:
    reader = read(page)
    assert len(set(reader.ids)) == len(reader.ids)
    wanted = set(re.findall(rb'(?:href="#|url\(#)([^")]+)', page))
    assert len(wanted) > 20
    assert wanted <= {one.encode() for one in reader.ids}


def test_nothing_is_loaded_and_nothing_runs(page: bytes) -> None:
    reader = read(page)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "link", "iframe", "object", "embed"})
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/jpeg;base64,"))
    assert not re.search(rb"url\((?!#)|@import|https?://", page)
    policy = next(a["content"] for t, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_every_criterion_stands_with_its_limit(report: ParityReport, page: bytes) -> None:
    text = read(page).text("runs")
    for entry in report.entries:
        for check in entry.checks:
            for criterion in check.criteria:
                assert bound(criterion) in text
                assert f"{title(criterion)} on {check.images}" in text
                assert f'title="{CRITERIA[criterion.name].question}"' in unescape(page.decode())
                assert " ".join(criterion.detail.split()) in text


def test_pictures_carry_no_style_sheet_no_clock_and_no_foreign_namespace(page: bytes) -> None:
    assert page.count(b"<style") == 1
    assert b"xmlns" not in page
    assert b"metadata" not in page
    assert b"DejaVu Sans', 'Bitstream" not in page
    assert b"#00fe" not in page


def test_a_bundle_without_anything_to_show_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    bundle = write(tmp_path / "tiny", [FP32])
    report = checked(bundle)
    reader = read(render(report, gather(bundle, report)))
    assert "resnet-export parity BUNDLE --layers all" in reader.text("layers")
    assert "resnet-export parity BUNDLE --data DIR" in reader.text("accuracy")
    assert "--int8 --calib DIR" in reader.text("ranges")
    assert "No run changed a prediction" in reader.text("flips")
    charts = [attributes["aria-label"] for tag, attributes in reader.tags if tag == "svg"]
    assert len(charts) == 2  # stages and agreement; one run has nothing to be compared with in time
    assert "The one run has the same top-1 agreement on the golden images" in reader.text("time")


def test_runs_that_all_tie_are_told_apart_by_a_sentence_and_their_times(tmp_path: Path) -> None:
    one = checked(write(tmp_path / "tiny", [FP32]))
    twin = msgspec.structs.replace(one.entries[0], artifact="twin")
    times = {twin.key: 1.5, **one.times["running"]}
    report = msgspec.structs.replace(one, entries=(*one.entries, twin), times={**one.times, "running": times})
    reader = read(render(report))
    assert "All runs have the same top-1 agreement on the golden images, 100.00 %" in reader.text("time")
    assert all(entry.title in reader.text("time") for entry in report.entries)
    assert not any("Pareto-optimal" in str(attributes.get("aria-label")) for _, attributes in reader.tags)


def test_a_further_chart_is_one_row_of_the_table(
    report: ParityReport, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(report: ParityReport, _: Material) -> Shown:
        rows = tuple(Row((entry.title, entry.place), not entry.passed) for entry in report.entries)
        return Shown(
            lede="<b>A lede</b>", tables=(Table(("run", "place"), rows),), missing="No picture here."
        )

    monkeypatch.setattr(page_module, "CHARTS", (*CHARTS, Section("novelty", "New", "A novelty", show)))
    reader = read(render(report, material))
    assert ("a", {"href": "#novelty"}) in reader.tags
    text = reader.text("novelty")
    assert text.startswith("A novelty <b>A lede</b> run place")
    assert "✕ int8.cpu on onnxruntime onnxruntime" in text
    assert text.endswith("No picture here.")


def test_the_verdict_is_shown_clause_by_clause_as_its_sentence_has_it(
    report: ParityReport, page: bytes
) -> None:
    text = " ".join(read(page).texts[""].split())
    verdict = report.verdict
    assert f"✕ Failed: {verdict.headline}" in text
    for finding in verdict.findings:
        assert finding in text
        assert finding in verdict.sentence


def test_an_exported_bundle_and_its_own_report_are_enough_for_a_page(resnet18_bundle: Path) -> None:
    report = decode_report((resnet18_bundle / "report.json").read_bytes())
    reader = read(render(report, gather(resnet18_bundle, report)))
    charts = [attributes["aria-label"] for tag, attributes in reader.tags if tag == "svg"]
    attributed = [entry.attribution.sentence for entry in report.entries if entry.attribution]
    assert attributed
    assert set(attributed) <= set(charts)
    for entry in report.entries:
        assert entry.sha256 in reader.text("provenance")


def test_a_host_that_runs_nothing_gets_a_page_without_charts(tmp_path: Path) -> None:
    bundle = write(tmp_path / "tiny", [FP32])
    report = checked(bundle)
    nothing = msgspec.structs.replace(
        report,
        entries=(),
        unverified=("fp32",),
        verdict=msgspec.structs.replace(
            report.verdict, status="unverified", exit_code=2, sentence="NOT VERIFIED: nothing checked."
        ),
    )
    reader = read(render(nothing))
    assert "fp32 none on this host" in reader.text("runs")
    assert "? not verified" in reader.text("runs")
    assert "svg" not in {tag for tag, _ in reader.tags}
    for section in ("stages", "time"):
        assert "No run" in reader.text(section)


def test_a_run_that_broke_down_is_there_with_its_reason(report: ParityReport) -> None:
    broken = msgspec.structs.replace(report.entries[0], checks=(), attribution=None, error="it <b>fell</b>")
    reader = read(render(msgspec.structs.replace(report, entries=(broken, *report.entries[1:]))))
    assert "it <b>fell</b>" in reader.text("runs")
    assert "did not run" in reader.text("runs")


def test_time_is_the_seconds_of_the_run_by_its_images(report: ParityReport) -> None:
    found = milliseconds(report)
    for entry in report.entries:
        assert found[entry.key] == pytest.approx(1000 * report.times["running"][entry.key] / (32 + 100))


def test_the_reference_of_unlabelled_data_is_timed_over_the_data_too(bundle: Path, tmp_path: Path) -> None:
    from tests.parity_bundle import crops

    np.savez(tmp_path / "plain.npz", images=crops(50, seed=3))
    report = checked(bundle, tmp_path / "plain.npz")
    (reference,) = [entry for entry in report.entries if entry.check("data") is None]
    assert milliseconds(report)[reference.key] == pytest.approx(
        1000 * report.times["running"][reference.key] / (32 + 50)
    )
    reader = read(render(report, gather(bundle, report, data=tmp_path / "plain.npz")))
    assert "have no labels" in reader.text("accuracy")


def test_the_page_of_a_thousand_images_that_all_flip_stays_below_three_megabytes(
    report: ParityReport,
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 1000)
    entries = []
    for number in range(16):
        found = compare(
            np.eye(5)[labels],
            np.eye(5)[(labels + 1 + number % 4) % 5],
            labels=labels,
            names=tuple(f"a/rather/long/path/of/an/image_{i + number * 20:04}.jpg" for i in range(1000)),
        )
        flips = tuple(msgspec.structs.replace(flip, index=flip.index + 20 * number) for flip in found.flips)
        entry = report.entries[number % len(report.entries)]
        check = entry.checks[-1]
        comparison = msgspec.structs.replace(found, flips=flips)
        entries.append(
            msgspec.structs.replace(
                entry,
                artifact=f"artifact{number}",
                checks=(*entry.checks[:-1], msgspec.structs.replace(check, comparison=comparison)),
            )
        )
    many = msgspec.structs.replace(report, entries=tuple(entries))
    assert len(flipped(many)) == SHOWN
    # Noise is what JPEG compresses worst.
    crops = {key: rng.integers(0, 256, (224, 224, 3), dtype=np.uint8) for key in flipped(many)}
    page = render(
        many, Material(labels=("a long label, with its synonyms",) * 5, table=table(60), crops=crops)
    )
    assert len(page) < 3_000_000
    reader = read(page)
    assert sum(tag == "img" for tag, _ in reader.tags) == SHOWN
    assert f"this page shows {SHOWN} at most" in reader.text("flips")
    golden = sum(entry.checks[0].comparison.flip_count for entry in entries)
    assert f"{16 * 1000 + golden} predictions changed" in reader.text("flips")


def test_a_page_is_not_made_of_another_bundle(report: ParityReport, tmp_path: Path) -> None:
    other = write(tmp_path / "tiny", graphs={FP16.name: graph(FP16, batch=4)}, trained=True)
    with pytest.raises(BundleError, match=r"about another '(int8\.cpu|fp16)' than the bundle holds"):
        gather(other, report)


def test_pictures_are_small_jpegs(material: Material, report: ParityReport, page: bytes) -> None:
    import base64
    import io

    from PIL import Image

    found = re.findall(rb'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(found) == len(flipped(report)) > 3
    for key, data in zip(flipped(report), found, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert max(picture.size) <= THUMBNAIL
            shown = np.asarray(picture.convert("RGB"), np.float64)
        assert np.abs(shown - material.crops[key]).mean() < 20


def test_a_near_tie_is_said_with_the_width_that_makes_it_one(report: ParityReport) -> None:
    def near(check: Check) -> Check:
        flips = tuple(
            msgspec.structs.replace(flip, margin=1.38, near_tie=True) for flip in check.comparison.flips
        )
        comparison = msgspec.structs.replace(check.comparison, flips=flips, near_tie=1.5)
        return msgspec.structs.replace(check, comparison=comparison)

    entries = tuple(
        msgspec.structs.replace(entry, checks=tuple(map(near, entry.checks))) for entry in report.entries
    )
    said = read(render(msgspec.structs.replace(report, entries=entries))).text("flips")
    assert "margin 1.4 logits (3.97 : 1), within the 1.5 logits that permitted error may swap" in said
    assert "near tie" not in said


def test_the_command_says_what_was_asked(report: ParityReport) -> None:
    asked = msgspec.structs.replace(
        report.asked,
        data="my photos",
        limit=50,
        max_drop=0.5,
        min_agreement=99.0,
        artifacts=("int8",),
        backends=("openvino",),
        reference="eager",
        seed=7,
        layers="failed",
    )
    page = render(msgspec.structs.replace(report, asked=asked), Material())
    assert (
        "resnet-export parity BUNDLE --artifact int8 --backend openvino --data 'my photos' --reference eager "
        "--limit 50 --seed 7 --max-drop 0.5 --min-agreement 99 --weights CHECKPOINT --html parity.html"
    ) in read(page).text("provenance")
    more = msgspec.structs.replace(
        asked, seed=3, tolerances="my limits.json", layers=("fp16", "int8"), weights="my.pth", backends=None
    )
    said = command(msgspec.structs.replace(report, asked=more))
    assert said.endswith(
        "--reference eager --weights my.pth --limit 50 --seed 3 --max-drop 0.5 --min-agreement 99 "
        "--tolerance 'my limits.json' --layers fp16 --layers int8 --html parity.html"
    )
    bare = msgspec.structs.replace(report.asked, data=None, layers="none", tolerances={"fp16": {}})
    said = command(msgspec.structs.replace(report, asked=bare))
    assert "--tolerance LIMITS" in said
    assert "--no-layers" in said
    assert "--seed" not in said
