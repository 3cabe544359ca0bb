"""The page in a real Chromium: it renders, alone and readable, on a phone and on a desk, by day and by night."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from resnet_export.exporter.report import Material, gather, render
from resnet_export.exporter.report.report_data import flipped
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.parity.report.schema import ParityReport
from tests import chromium
from tests.parity_bundle import graph, logits, write
from tests.parity_page import archive, checked, damaged_bundle, swapped, table, with_layers
from tests.tiny_bundle import INT8_CPU

PHONE, DESK = 390, 1280
SECTIONS = ["runs", "stages", "layers", "accuracy", "time", "ranges", "flips", "provenance"]
HOSTILE = '</svg><script>window.hit=1</script><img src=x onerror="window.hit=1">$\\frac{$&'

# Text smaller than it is drawn: an SVG that is shown at another size scales its text with it.
SMALLEST_TEXT = """() => Math.min(...[...document.querySelectorAll('svg text')].map(text => {
    const matrix = text.getScreenCTM();
    return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.a, matrix.b);
}))"""

# WCAG 2.2, relative luminance and contrast ratio, of every text in a chart with the page behind it.
LEAST_CONTRAST = """() => {
    const luminance = color => {
        const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(value => value / 255)
            .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = luminance(getComputedStyle(document.body).backgroundColor);
    return Math.min(...[...document.querySelectorAll('svg text')].map(text => {
        const ink = luminance(getComputedStyle(text).fill);
        return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    }));
}"""

OUTSIDE = """() => [...document.querySelectorAll('svg text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < -1 || box.right > innerWidth + 1;
}).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = chromium.find()
    if found is None:
        pytest.skip(chromium.missing())
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(
            executable_path=found.program, args=list(chromium.FLAGS), env=dict(found.environment)
        )
        yield one
        one.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damaged_bundle(tmp_path_factory.mktemp("damaged") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(tmp_path_factory.mktemp("data"), 120)


@pytest.fixture(scope="module")
def failing(bundle: Path, data: Path) -> ParityReport:
    return with_layers(checked(bundle, data))


@pytest.fixture(scope="module")
def material(bundle: Path, data: Path, failing: ParityReport) -> Material:
    return dataclasses.replace(gather(bundle, failing, data=data), table=table())


@pytest.fixture(scope="module")
def failing_page(failing: ParityReport, material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "failing.html"
    path.write_bytes(render(failing, material))
    return path


@pytest.fixture(scope="module")
def passing_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    report = checked(write(folder / "tiny"))
    path = folder / "passing.html"
    path.write_bytes(render(report, gather(folder / "tiny", report)))
    return path


@dataclasses.dataclass
class Seen:
    """What the browser complained of, and what it asked for besides the page."""

    complaints: list[str] = dataclasses.field(default_factory=list)
    requests: list[str] = dataclasses.field(default_factory=list)


def opened(browser: Browser, path: Path, width: int = DESK, scheme: Any = "light") -> tuple[Page, Seen]:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    seen = Seen()
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(path.as_uri())
    return page, seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("which", ["passing_page", "failing_page"])
def test_the_page_stands_alone_and_fits(
    browser: Browser, which: str, width: int, scheme: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(which)
    page, seen = opened(browser, path, width, scheme)
    try:
        assert seen.complaints == []
        wanted = [url for url in seen.requests if not url.startswith("data:")]
        assert wanted == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate(SMALLEST_TEXT) >= 12
        assert page.evaluate(LEAST_CONTRAST) >= 4.5
        assert page.locator("main > section").evaluate_all("all => all.map(one => one.id)") == SECTIONS
        assert page.locator("script").count() == 0
    finally:
        page.close()


def test_dark_and_light_differ_in_the_charts_too(browser: Browser, failing_page: Path) -> None:
    found = {}
    for scheme in ("light", "dark"):
        page, _ = opened(browser, failing_page, scheme=scheme)
        found[scheme] = page.evaluate(
            """() => [getComputedStyle(document.body).backgroundColor,
                      getComputedStyle(document.querySelector('#stages svg text')).fill]"""
        )
        page.close()
    assert found["light"][0] != found["dark"][0]
    assert found["light"][1] != found["dark"][1]


def test_the_numbers_are_those_of_the_artifacts(browser: Browser, bundle: Path, failing_page: Path) -> None:
    """Against logits that ONNX Runtime gives when nothing of this project drives it."""
    golden = read_golden(bundle)
    eager = golden.logits["eager"].astype(np.float64)
    found = logits(golden.images, swapped(graph(INT8_CPU))).astype(np.float64)
    error = np.linalg.norm(found - eager) / np.linalg.norm(eager)
    agree = int((found.argmax(axis=1) == eager.argmax(axis=1)).sum())
    page, _ = opened(browser, failing_page)
    try:
        rows = page.locator("#runs table.runs tbody tr").evaluate_all(
            "all => all.map(row => [...row.cells].map(cell => cell.innerText))"
        )
        (row,) = [row for row in rows if row[1] == INT8_CPU.name]
        assert row[0] == "✕ failed"
        assert float(row[4]) == pytest.approx(error, rel=0.06)
        assert row[6].startswith(f"{agree} of 32, {100 * agree / 32:.1f} %")
        assert (
            "Failed: probable cause stage backend; 1 of 4 artifact runs outside tolerance"
            in page.inner_text("#verdict")
        )
        assert page.locator("#runs tr.failed .mark").first.inner_text().startswith("✕")
    finally:
        page.close()


def test_the_chart_of_stages_says_what_the_attribution_says(
    browser: Browser, failing: ParityReport, failing_page: Path
) -> None:
    entry = next(entry for entry in failing.entries if entry.artifact == INT8_CPU.name)
    assert entry.attribution is not None
    page, _ = opened(browser, failing_page)
    try:
        figure = page.locator("#stages figure").first  # what diverges stands first
        texts = figure.locator("svg text").all_text_contents()
        assert figure.locator("h3").inner_text() == f"✕ {entry.title}"
        assert [text for text in texts if text in {stage.stage for stage in entry.attribution.stages}] == [
            stage.stage for stage in entry.attribution.stages
        ]
        share = entry.attribution.stages[-1].share
        assert share is not None
        assert any(text.startswith(f"✕ {100 * share:.0f} %") for text in texts)
    finally:
        page.close()


def test_the_first_layer_that_diverges_is_named_by_node_and_module(
    browser: Browser, failing_page: Path
) -> None:
    page, _ = opened(browser, failing_page)
    try:
        assert "diverges at layer2.0.conv1" in page.inner_text("#layers figcaption")
        assert "layer2.0.conv1" in page.locator("#layers svg text").all_text_contents()
        cells = page.locator("#layers tbody tr").first.locator("td").all_inner_texts()
        assert cells[:3] == ["✕ layer2.0.conv1", "layer2.0.conv1", "Conv"]
    finally:
        page.close()


def test_every_flipped_image_is_shown_with_both_predictions(
    browser: Browser, failing: ParityReport, material: Material, failing_page: Path
) -> None:
    page, _ = opened(browser, failing_page)
    try:
        tiles = page.locator("#flips .gallery li")
        assert tiles.count() == len(flipped(failing)) > 3
        assert page.locator("#flips img").evaluate_all(
            "all => all.every(one => one.complete && one.naturalWidth > 0)"
        )
        assert page.locator("#flips img").count() == tiles.count()
        check = next(e for e in failing.entries if e.artifact == INT8_CPU.name).check("data")
        assert check is not None
        flip = check.comparison.flips[0]
        words = tiles.filter(has_text=flip.name).first.inner_text()
        assert f"{material.labels[flip.reference]} ({flip.reference})" in words
        assert f"{material.labels[flip.candidate]} ({flip.candidate})" in words
        assert flip.label is not None
        assert f"{material.labels[flip.label]} ({flip.label})" in words
    finally:
        page.close()


def test_what_was_folded_away_is_printed(browser: Browser, failing_page: Path) -> None:
    page, _ = opened(browser, failing_page)
    try:
        closed = "details:not([open]) table"
        assert page.locator(closed).count() > 0
        assert not page.locator(closed).first.is_visible()
        page.emulate_media(media="print")
        assert page.evaluate(f"document.querySelector('{closed}').getBoundingClientRect().height") > 20
        assert not page.locator("nav").is_visible()
    finally:
        page.close()


def test_names_from_outside_stay_text(
    browser: Browser, failing: ParityReport, material: Material, tmp_path: Path
) -> None:
    import msgspec

    entries = []
    for entry in failing.entries:
        checks = tuple(
            msgspec.structs.replace(
                check,
                comparison=msgspec.structs.replace(
                    check.comparison,
                    flips=tuple(
                        msgspec.structs.replace(flip, name=HOSTILE) for flip in check.comparison.flips
                    ),
                ),
            )
            for check in entry.checks
        )
        entries.append(msgspec.structs.replace(entry, checks=checks, notes=(HOSTILE,)))
    report = with_layers(msgspec.structs.replace(failing, entries=tuple(entries)), HOSTILE, HOSTILE)
    asked = msgspec.structs.replace(report.asked, data=HOSTILE)
    tensors = {HOSTILE + name: entry for name, entry in table().tensors.items()}
    hostile = dataclasses.replace(
        material,
        labels=(HOSTILE,) * 5,
        table=msgspec.structs.replace(table(), tensors=tensors),
    )
    path = tmp_path / "hostile.html"
    path.write_bytes(render(msgspec.structs.replace(report, asked=asked), hostile))
    page, seen = opened(browser, path, PHONE)
    try:
        assert seen.complaints == []
        assert page.evaluate("window.hit") is None
        assert page.locator("script").count() == 0
        assert page.locator("img:not([src^='data:image/jpeg;base64,'])").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
        assert HOSTILE in page.locator("#flips li strong").first.inner_text()
        assert HOSTILE in page.inner_text("#layers tbody")
        assert page.evaluate(OUTSIDE) == []
    finally:
        page.close()
