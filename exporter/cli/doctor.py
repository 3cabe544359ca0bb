"""`resnet-export doctor`: what this host can export, build and run, and how to get the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.inspect import host_lines
from resnet_export.exporter.cli.json_output import json_option, print_json
from resnet_export.exporter.engine.targets import plan_engines, sm
from resnet_export.exporter.spec import EngineChoice
from resnet_export.runtime.backends.routes import ROUTES
from resnet_export.runtime.errors import ResnetExportError
from resnet_export.runtime.select.eligibility import missing_package
from resnet_export.runtime.select.host import HostFacts, probe
from resnet_export.runtime.text_table import text_table

_BUILDERS: tuple[tuple[EngineChoice, str], ...] = (
    ("tensorrt-rtx", "engines of TensorRT for RTX"),
    ("tensorrt", "engines of standard TensorRT"),
)
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+).*extra == [\"']([^\"']+)[\"']")


class Finding(NamedTuple):
    """One thing that a host may be able to do; `missing` says why not and how to get it, "" where it can."""

    does: str
    what: str
    missing: str


@click.command(name="doctor")
@json_option
@debug_option
def command(as_json: bool) -> None:
    """Say what this host can export, build and run, and how to get the rest."""
    host = probe(imports=True)
    found = [*_extras(), *_builders(host), *_backends(host)]
    if as_json:
        rows = [finding._asdict() | {"here": not finding.missing} for finding in found]
        print_json({"host": host, "findings": rows})
        return
    click.echo("\n".join(host_lines(host)))
    for warning in host.warnings:
        click.echo(f"Note: {warning}", err=True)
    click.echo()
    table = [[does, what, missing or "yes"] for does, what, missing in found]
    click.echo(text_table(["does", "what", "here"], table))


def _extras() -> Iterator[Finding]:
    """Yield the optional parts of the package; a part is here when every distribution that it names is."""
    needs: dict[str, list[str]] = {}
    for requirement in metadata.requires("resnet-export") or ():
        if match := _REQUIREMENT.match(requirement):
            needs.setdefault(match[2], []).append(match[1])
    for extra, names in ((extra, names) for extra, names in needs.items() if extra != "dev"):
        missing = [name for name in names if not _is_installed(name)]
        said = f"lacks {', '.join(missing)}: pip install -c constraints.txt 'resnet-export[{extra}]'"
        yield Finding("has", f"the extra [{extra}]", said if missing else "")


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _builders(host: HostFacts) -> Iterator[Finding]:
    for choice, what in _BUILDERS:
        try:
            plan = plan_engines(choice, (), host)
        except ResnetExportError as error:
            yield Finding("builds", what, str(error))
        else:
            targets = " ".join(sm(target) for build in plan.builds for target in build.targets)
            yield Finding("builds", f"{what} for {targets}" if targets else what, "; ".join(plan.notes))


def _backends(host: HostFacts) -> Iterator[Finding]:
    for route in ROUTES:
        what = f"{route.kind} on {route.backend} ({route.provider})"
        missing = missing_package(route, host)
        if missing is None and route.device == "gpu" and not host.gpus:
            missing = f"needs an NVIDIA GPU: {host.gpu_note or 'this host has none'}"
        yield Finding("runs", what, missing or "")
