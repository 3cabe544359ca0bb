"""`resnet-export inspect`: what is inside a bundle, what this host would run, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.json_output import json_option, print_json
from resnet_export.exporter.cli.session_options import session_options
from resnet_export.runtime.bundle.layer_report import TABLE_HEADER, LayerReport, read_reports, summary, table
from resnet_export.runtime.bundle.manifest import Artifact, Manifest, verify_bundle
from resnet_export.runtime.select.choice import Resolution
from resnet_export.runtime.select.host import HostFacts, probe
from resnet_export.runtime.select.profile import read_profile
from resnet_export.runtime.select.resolver import resolve
from resnet_export.runtime.select.spec import parse_request
from resnet_export.runtime.text_table import text_table


@click.command(name="inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@session_options
@click.option("--layers", is_flag=True, help="Show every engine's layers, and which missed their precision.")
@json_option
@debug_option
def command(bundle: Path, layers: bool, as_json: bool, **request: Any) -> None:
    """Show what BUNDLE holds, what this host would run, and why.

    Every file's hash is checked; nothing is loaded into a backend.
    """
    manifest = verify_bundle(bundle)
    reports = read_reports(bundle, manifest) if layers else ()
    host = probe(imports=True)  # as a session and a parity check find out
    asked = parse_request(manifest, **request)
    profile, note = read_profile(manifest, host, asked.threads)
    resolution = resolve(manifest, host, asked, profile=profile)
    if as_json:
        found: dict[str, object] = {"manifest": manifest, "host": host, "resolution": resolution}
        if layers:
            found["layers"] = {artifact.name: report for artifact, report in reports}
        print_json(found)
        return
    click.echo("\n".join(_lines(bundle, manifest, host, resolution)))
    if note:
        click.echo(f"note    {note}")
    if layers:
        click.echo("\n".join(_layers(reports)))


def _lines(bundle: Path, manifest: Manifest, host: HostFacts, resolution: Resolution) -> Iterator[str]:
    model, made = manifest.model, manifest.provenance
    weights = model.weights
    origin = f"untrained, seed {weights.seed}" if weights.source == "untrained" else weights.name
    classes = f"{len(manifest.labels)} classes{', sigmoid' if model.activation == 'sigmoid' else ''}"
    yield f"{bundle}: {model.arch}, {classes}, {model.parameters:,} parameters ({origin})"
    for role, spec in (("input", manifest.input), *(("output", one) for one in manifest.outputs)):
        yield f"{role:<7} {spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}] {spec.layout}"
    where = "normalized in the graph" if manifest.preprocessing.in_graph else "normalized before the graph"
    yield f"images  {manifest.preprocessing.words}, {where}"
    batch = manifest.batch
    yield f"batch   {batch.min} to {batch.max}, best at {batch.opt}"
    version = made.versions.get("resnet-export", "an unknown version")
    yield f"made    {made.created} by resnet-export {version}, PyTorch's {made.exporter} exporter, opset {made.opset}"
    golden = manifest.golden
    yield f"golden  {golden.count} images ({golden.source}), logits of {', '.join(golden.stages)}"
    yield from (f"note    {notice}" for notice in made.notices)
    yield ""
    headers = ["artifact", "file", "precision", "target", "MB", "sha256", "parity"]
    rows = [
        [
            artifact.name,
            artifact.file,
            artifact.precision,
            artifact.target,
            f"{artifact.bytes / 1e6:.1f}",
            artifact.sha256[:12],
            _verdicts(artifact),
        ]
        for artifact in manifest.artifacts
    ]
    yield text_table(headers, rows)
    for artifact in manifest.artifacts:
        for layer in artifact.excluded:
            yield f"  {artifact.name} keeps {layer.node} in {layer.precision}: {layer.reason}"
    yield ""
    yield from host_lines(host)
    yield f"would run {resolution.choice}" if resolution.choice else "would run nothing"
    yield from (f"  {considered}" for considered in resolution.trace)


def _layers(reports: Sequence[tuple[Artifact, LayerReport]]) -> Iterator[str]:
    if not reports:
        yield "\nno engine has a layer report"
    for artifact, report in reports:
        yield f"\n{artifact.name}"
        yield from (f"  {sentence}" for sentence in summary(report))
        yield ""
        yield text_table(TABLE_HEADER, table(report))


def _verdicts(artifact: Artifact) -> str:
    """Return "onnxruntime ok, openvino FAILED", or that nothing is recorded."""
    said = [f"{verdict.backend} {'ok' if verdict.passed else 'FAILED'}" for verdict in artifact.parity]
    return ", ".join(said) or "unchecked"


def host_lines(host: HostFacts) -> Iterator[str]:
    """Yield what is known of a host, in lines."""
    packages = ", ".join(f"{package.distribution} {package.version}" for package in host.packages)
    yield f"host    {host.machine}, {host.cpus} processors, {' '.join(host.cpu_features) or 'features unknown'}"
    yield f"        backends: {packages or 'none'}"
    yield from (f"        {gpu.name}, compute capability {gpu.compute_capability}" for gpu in host.gpus)
    if host.gpu_note:
        yield f"        no GPU: {host.gpu_note}"
