"""`resnet-export` itself: flags to specs, and what came out to the terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from resnet_export.exporter.cli.export_options import specs
from resnet_export.exporter.cli.progress import show_progress
from resnet_export.exporter.request import check_request
from resnet_export.runtime.bundle.manifest import REPORT_NAME
from resnet_export.runtime.text_table import wrapped

if TYPE_CHECKING:
    from resnet_export.calibration.data.photos import Photos
    from resnet_export.exporter.bundle.staging import Bundle
    from resnet_export.exporter.pipeline import Export, Job


def run(*, out: Path | None, dry_run: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Export, print the parity table, and exit with 1 when something is outside its tolerance."""
    model, spec = specs(options)
    # Before the imports that would fail for what is missing, in words that help nobody.
    check_request(model, spec)
    from resnet_export.exporter.pipeline import export, load_photos, prepare
    from resnet_export.runtime.parity.report import text
    from resnet_export.runtime.parity.report.answer import caveats

    with show_progress(quiet=quiet) as progress:
        if dry_run:
            job = prepare(model, spec, out, progress=progress)
            photos = load_photos(job, progress=progress)
        else:
            result = export(model, spec, out, progress=progress)
    if dry_run:
        _print_plan(job, photos, as_json=as_json)
        return
    bundle, report = result.bundle, result.report
    notices = bundle.manifest.provenance.notices
    for notice in notices:
        click.echo(wrapped(f"Note: {notice}", "  "), err=True)
    if as_json:
        click.echo(json.dumps(_summary(result), indent=2))
    elif quiet:
        for said in (
            *caveats(report),
            *((report.verdict.sentence,) if report.exit_code or report.amber else ()),
        ):
            click.echo(said, err=True)
    else:
        # The notices stand on standard error already.
        notes = tuple(note for note in report.notes if note not in notices)
        click.echo(text.render(msgspec.structs.replace(report, notes=notes)))
        click.echo(
            wrapped(f"{bundle.path} holds {_contents(bundle)}; the report is {bundle.path / REPORT_NAME}")
        )
    sys.exit(report.exit_code)


def _print_plan(job: Job, photos: Photos, *, as_json: bool) -> None:
    from resnet_export.exporter.bundle.staging import check_output
    from resnet_export.exporter.engine.targets import sm

    check_output(job.out, force=job.spec.force, bytes_needed=job.bytes_needed)
    net = job.net
    plan = {
        "out": str(job.out),
        "replaces": job.out.exists(),
        "architecture": net.info.arch,
        "classes": net.info.num_classes,
        "weights": net.info.weights.name,
        "precisions": ["fp32", *map(str, job.spec.lowered)],
        "engines": [
            f"{build.variant} for {' '.join(map(sm, build.targets))}" for build in job.engines.builds
        ],
        "preprocessing": net.preprocessing.words,
        "images": f"{len(photos)} {'bundled' if photos.bundled else 'calibration'}",
        "validation": "none" if job.parity.data is None else job.parity.data,
        "batch": f"{job.spec.batch.min},{job.spec.batch.opt},{job.spec.batch.max}",
        "reuses": "nothing" if job.earlier is None else f"{job.earlier.bundle}, where nothing changed",
        "megabytes": round(job.bytes_needed / 1e6, 1),
        "assumed": [*net.notices, *job.engines.notes],
    }
    if as_json:
        click.echo(json.dumps(plan, indent=2))
        return
    for key, value in plan.items():
        for text in (value or ["none"]) if isinstance(value, list) else [value]:
            click.echo(wrapped(f"{key:<14} {text}", " " * 15))
            key = ""
    click.echo("Nothing was written, because of --dry-run.")


def _contents(bundle: Bundle) -> str:
    return ", ".join(
        f"{artifact.file} ({artifact.bytes / 1e6:.1f} MB)" for artifact in bundle.manifest.artifacts
    )


def _summary(result: Export) -> dict[str, Any]:
    bundle, report = result.bundle, result.report
    return {
        "bundle": str(bundle.path),
        "status": report.verdict.status,
        "verdict": report.verdict.sentence,
        "notices": list(bundle.manifest.provenance.notices),
        "artifacts": [
            {
                "name": artifact.name,
                "file": artifact.file,
                "precision": str(artifact.precision),
                "bytes": artifact.bytes,
                "sha256": artifact.sha256,
                "excluded": [layer.node for layer in artifact.excluded],
            }
            for artifact in bundle.manifest.artifacts
        ],
    }
