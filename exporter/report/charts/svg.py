"""Charts as small SVG pictures that belong to the page: its fonts, its colors, light and dark.

matplotlib draws; what it writes is then cut down to what the page needs. Colors are named by their role and
become CSS variables, text stays text in the page's own font, and nothing in a picture depends on the time, the
machine or the user's settings. A picture is 320 units wide and its text 12 units high, so that it can be read on a
phone as it is.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text

from resnet_export.runtime.parity.measure.comparison import printable
from resnet_export.runtime.precision import Precision

WIDTH = 320
TEXT = 12

_Ground = Literal["ink", "muted", "line", "surface", "good", "bad"]
Role = _Ground | Precision
"""What a color is for; a precision has the color of its row, the same in every picture."""

# matplotlib needs colors and the page wants names: each role has a color that is drawn with nowhere else.
_STAND_IN = "#00fe%02x"
_ROLES: tuple[Role, ...] = (*get_args(_Ground), *Precision)
_COLOUR = re.compile("#00fe([0-9a-f]{2})")
_FAMILY = re.compile("font-family: [^;]*;? ?")
_FONT = re.compile(r"font: (?:italic )?(?:(bold|[1-9]00) )?([\d.]+)px [^;]*;?")
_REFERENCE = re.compile(r"url\(#([^)]+)\)|^#(.+)$")
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "resnet-export",
    "text.parse_math": False,
    "font.size": TEXT,
    "axes.unicode_minus": True,
    "lines.solid_capstyle": "round",
    "path.simplify": False,
}


def color(role: Role) -> str:
    """Return what stands for the page's color `role` while a picture is drawn."""
    return _STAND_IN % _ROLES.index(role)


@contextmanager
def drawing() -> Iterator[None]:
    """Draw inside this: matplotlib's own defaults with this module's style, whatever the user has set."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]  # its keys are spelt out in the stubs
        yield


def picture(height: float) -> Figure:
    """Return an empty figure of `WIDTH` × `height` units."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)  # the page is the ground
    return figure


def blank(figure: Figure) -> Axes:
    """Return axes over the whole figure whose coordinates are its units, from the top left corner, with no frame."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return axes


def framed(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """Return axes with these margins, in units: a thin line below, a faint grid, muted ticks."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    axes.patch.set_visible(False)
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(color("line"))
    axes.tick_params(colors=color("muted"), length=0, labelsize=TEXT, pad=5)
    axes.grid(axis="y", color=color("line"), linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def write(axes: Axes, x: float, y: float, text: str, role: Role = "ink", **options: Any) -> Text:
    """Write `text` as it is, mathematics and control characters never interpreted; `options` are matplotlib's."""
    return axes.text(
        x,
        y,
        printable(text),
        color=color(role),
        fontsize=TEXT,
        parse_math=False,
        **{"va": "center", **options},
    )


def fitted(text: str, width: float, *, bold: bool = False) -> str:
    """Return `text`, its middle left out where it would be wider than `width` units.

    Both ends of a node's or an artifact's name tell it from others. Widths are those of a wide system font.
    """
    most = max(4, int(width / ((0.66 if bold else 0.56) * TEXT)))
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def scientific(value: float) -> str:
    """Return a number in two digits, small ones with a power of ten: "0.48", "1.6×10⁻⁴"."""
    if not value or 1e-3 <= abs(value) < 1000:
        return f"{value:.2g}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}×10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−", 1)


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return the figure as an `<svg>` element for a page.

    `name` makes ids unique in the page; `description` is for those who cannot see the picture.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith("}metadata"):
                parent.remove(child)
    _plain(root)
    _rename(root, name)
    for attribute in ("version", "width", "height"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", printable(description))
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _FAMILY.sub("", _FONT.sub(_font, element.attrib["style"])))
    markup = ElementTree.tostring(root, encoding="unicode")
    return Markup(_COLOUR.sub(lambda found: f"var(--{_ROLES[int(found[1], 16)]})", markup))


def _plain(root: ElementTree.Element) -> None:
    """Drop namespaces, which HTML does without, and the style sheet, which would rule the whole page."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key in [key for key in element.attrib if key.startswith("{")]:
            element.set(key.rpartition("}")[2], element.attrib.pop(key))
        if element.tag == "defs":
            for child in list(element):
                if child.tag.endswith("style"):
                    element.remove(child)


def _rename(root: ElementTree.Element, name: str) -> None:
    """Make ids unique in the page, and drop those that nothing refers to."""
    used = {
        found[1] or found[2]
        for element in root.iter()
        for key, value in element.attrib.items()
        if key != "id" and (found := _REFERENCE.search(value))
    }
    names = {known: f"{name}-{number}" for number, known in enumerate(sorted(used))}
    for element in root.iter():
        given = element.attrib.pop("id", None)
        if given in names:
            element.set("id", names[given])
        for key, value in element.attrib.items():
            if key != "id" and (found := _REFERENCE.search(value)):
                known = found[1] or found[2]
                element.set(key, value.replace(f"#{known}", f"#{names[known]}"))


def _font(found: re.Match[str]) -> str:
    # One declaration up to matplotlib 3.10, several since. The page says which font; what was measured here is
    # DejaVu Sans, which is wider than most.
    weight = f"font-weight: {found[1]};" if found[1] else ""
    return f"font-size: {float(found[2]):g}px;{weight}"
