"""`resnet-export parity`: the gate that a CI job runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from resnet_export.exporter import report as html
from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.output import check_outputs, write_output
from resnet_export.exporter.cli.progress import show_progress
from resnet_export.exporter.parity.check import check_parity
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.report import junit, markdown, text
from resnet_export.runtime.parity.report.schema import ParityReport, encode_report
from resnet_export.runtime.parity.spec import ParitySpec

_RENDER: dict[str, Callable[[ParityReport], bytes]] = {
    "--json": encode_report,
    "--junit": junit.render,
    "--markdown": lambda report: markdown.render(report).encode(),
}
_PRINTED = Path("-")
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(name="parity")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="Validation images: folder, .npz or list.",
)
@click.option(
    "--artifact", "artifacts", multiple=True, metavar="NAME", help="Check this artifact (repeatable)."
)
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME", help="Check on this backend (repeatable)."
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    metavar="PP",
    help="Accuracy drop allowed on labeled --data.",
)
@click.option("--strict", is_flag=True, help="Fail when the images are too few to resolve --max-drop.")
@click.option(
    "--min-agreement", type=click.FloatRange(0, 100), metavar="PCT", help="Top-1 agreement demanded."
)
@click.option(
    "--min-accuracy",
    type=click.FloatRange(0, 100),
    metavar="PCT",
    help="Top-1 accuracy demanded on labeled --data, of the fp32 graph too.",
)
@click.option(
    "--tolerance",
    "tolerances",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON with limits that replace the bundle's.",
)
@click.option(
    "--reference",
    type=click.Choice(["onnx", "eager"]),
    default="onnx",
    show_default=True,
    help="What --data is compared with; eager needs torch.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The checkpoint, for --reference eager.",
)
@click.option(
    "--layers",
    multiple=True,
    metavar="NAME",
    help="Compare this artifact's layers with fp32's; 'all' of them (repeatable; by default of those that fail).",
)
@click.option("--no-layers", is_flag=True, help="Do not compare the layers of what fails.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use at most N images of --data.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw that --limit makes.")
@click.option(
    "--triton",
    metavar="URL",
    help="Check what this Triton server runs: http://HOST:PORT or grpc://HOST:PORT, with /MODEL that model alone.",
)
@click.option(
    "--ray", metavar="ADDRESS", help="Compute --data on this Ray cluster (HOST:PORT, or auto); needs ray."
)
@click.option(
    "--json",
    "json_file",
    type=_FILE,
    metavar="[FILE]",
    is_flag=False,
    flag_value=str(_PRINTED),
    help="Print the report as JSON on standard output, or write it to a file.",
)
@click.option(
    "--junit", "junit_file", type=_FILE, metavar="FILE", help="Write JUnit XML: a case per criterion."
)
@click.option("--markdown", "markdown_file", type=_FILE, metavar="FILE", help="Write Markdown for a comment.")
@click.option("--html", "html_file", type=_FILE, metavar="FILE", help="Write the HTML report, one file.")
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@debug_option
def command(
    bundle: Path,
    layers: tuple[str, ...],
    no_layers: bool,
    json_file: Path | None,
    junit_file: Path | None,
    markdown_file: Path | None,
    html_file: Path | None,
    ray: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Compare BUNDLE's artifacts with the reference, on every backend of this host.

    Exit status: 0 within tolerance, 1 outside, 2 when the check could not be made.
    """  # fmt: skip
    if layers and no_layers:
        raise RequestError("--layers and --no-layers contradict each other; give one of them")
    if html_file is not None:
        html.require()
    printed = json_file == _PRINTED
    files = {"--json": None if printed else json_file, "--junit": junit_file, "--markdown": markdown_file}
    check_outputs(
        files | {"--html": html_file},
        {
            "BUNDLE": bundle,
            "--data": options["data"],
            "--tolerance": options["tolerances"],
            "--weights": options["weights"],
        },
    )
    given = {name: value for name, value in options.items() if value not in (None, ())}
    spec = ParitySpec(**given, layers=layers or ("none" if no_layers else "failed"))
    recorded = None if html_file is None else html.read_recorded(bundle)
    with show_progress(quiet=quiet) as progress:
        report = check_parity(bundle, spec, ray=ray, progress=progress)
    rendered = [(path, _RENDER[option](report)) for option, path in files.items() if path is not None]
    if html_file is not None:
        material = html.gather(bundle, report, data=options["data"], recorded=recorded)
        rendered.append((html_file, html.render(report, material)))
    for path, content in rendered:
        write_output(path, content)
    if printed:
        click.echo(encode_report(report), nl=False)
    elif not quiet:
        click.echo(text.render(report), nl=False)
    if report.verdict.status == "unverified" or (quiet and (report.exit_code or report.amber)):
        click.echo(report.verdict.sentence, err=True)
    sys.exit(report.exit_code)
