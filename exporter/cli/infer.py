"""`resnet-export infer`: the labels of images, written as they come."""

from __future__ import annotations

import csv
import glob
import io
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from resnet_export.calibration.data.image_sources import LIST_SUFFIXES, files_of, images_below
from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.session_options import session_options
from resnet_export.runtime import (
    Choice,
    Prediction,
    RequestError,
    ResnetExportError,
    open_session,
)

STANDARD_INPUT = "-"
_COLUMNS = ("image", "rank", "index", "label", "probability", "error")

Result = list[Prediction] | ResnetExportError


@click.command(name="infer")
@click.argument("bundle")
@click.argument("images", nargs=-1, metavar="IMAGE|FOLDER|PATTERN|LIST|-...")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Labels per image.")
@session_options
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "jsonl", "csv", "json"]),
    default="text",
    show_default=True,
    help="jsonl writes a JSON object per image, csv a row per label, both at once; json all images in the end.",
)
@click.option(
    "--triton",
    metavar="URL",
    help="Ask this Triton server (http://HOST:PORT or grpc://HOST:PORT, with /MODEL) and no BUNDLE.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the same as --format json.")
@debug_option
def command(
    bundle: str,
    images: tuple[str, ...],
    top: int,
    form: str,
    triton: str | None,
    as_json: bool,
    **request: Any,
) -> None:
    """Print the most probable labels of each image.

    An image that cannot be read costs the others nothing: the exit status is 1, and the number of those that failed is
    printed in the end. Images are named by their files, by folders (with everything in them), by patterns such as
    'photos/**/*.jpg', by lists with a path a line (.txt, .csv), or by paths, a line each, on standard input (-).
    """
    if triton is None and not images:
        raise click.UsageError("Missing argument 'IMAGE|FOLDER|PATTERN|LIST|-...'.")
    paths = _paths(images if triton is None else (bundle, *images))
    form = "json" if as_json else form
    with _open(bundle, triton, request) as session:
        names: deque[str] = deque()  # of the images that are under way

        def sources() -> Iterator[Any]:
            for name, source in paths:
                names.append(name)
                yield source

        results = session.stream(sources(), top, on_error="return")
        count = _Count()
        _WRITERS[form](count.of((names.popleft(), result) for result in results), session.choice)
        choice = session.choice
    if not count.images:
        raise RequestError("standard input names no images; write a path a line")
    if form != "json":  # which has it
        click.echo(f"ran {choice}", err=True)
    if count.failed:
        click.echo(f"{count.failed} of {count.images} images failed", err=True)
        raise SystemExit(1)


def _open(bundle: str, triton: str | None, request: dict[str, Any]) -> Any:
    """Return what answers: a session, or the ensemble of a server."""
    if triton is None:
        return open_session(bundle, **request)
    source = click.get_current_context().get_parameter_source
    for name in request:
        if source(name) is click.core.ParameterSource.COMMANDLINE:
            raise RequestError(f"--{name} was given with --triton, and the server decides it; leave it out")
    from resnet_export.exporter.triton.client import open_ensemble

    return open_ensemble(triton)


class _Count:
    """How many images went by, and how many of them failed."""

    def __init__(self) -> None:
        self.images = self.failed = 0

    def of(self, results: Iterable[tuple[str, Result]]) -> Iterator[tuple[str, Result]]:
        for name, result in results:
            self.images += 1
            self.failed += isinstance(result, ResnetExportError)
            yield name, result


# From arguments to images


def _paths(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Return the name and the source of each image. What is wrong with an argument is raised here, and not later."""
    if arguments.count(STANDARD_INPUT) > 1:
        raise RequestError("standard input can be read once; give '-' a single time")
    listed = [None if argument == STANDARD_INPUT else _files(argument) for argument in arguments]

    def each() -> Iterator[tuple[str, Any]]:
        for files in listed:
            yield from _standard_input() if files is None else ((str(path), path) for path in files)

    return each()


def _files(argument: str) -> list[Path]:
    """Return the image files that one argument stands for. Raises RequestError when there is none."""
    path = Path(argument)
    try:
        if path.is_dir():
            found = images_below(path)
        elif path.suffix.lower() in LIST_SUFFIXES and path.is_file():
            found = list(files_of(path))
        elif glob.has_magic(argument) and not path.exists():
            # Path.glob takes no absolute pattern.
            matches = map(Path, sorted(glob.glob(argument, recursive=True)))  # noqa: PTH207
            found = [
                file for match in matches for file in (images_below(match) if match.is_dir() else [match])
            ]
            found = list(dict.fromkeys(found))  # ** matches folders as well as what is in them
        else:
            found = [path]  # whether it is there is found out with its content
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(
            f"{argument!r} cannot be read ({reason}); name images that this user may read"
        ) from error
    if not found:
        raise RequestError(
            f"{argument!r} stands for no image; give image files, a folder or pattern of them, or a list with a path "
            "a line"
        )
    return found


def _standard_input() -> Iterator[tuple[str, Any]]:
    """Yield the images on standard input: of the paths on its lines, or the one image that it is itself."""
    stream = sys.stdin.buffer if sys.stdin is not None else io.BytesIO()
    first = stream.readline()
    if b"\0" in first or first[:1] in (
        b"\xff",
        b"\x89",
    ):  # no path: NUL is in all, or else how JPEG and PNG start
        yield STANDARD_INPUT, first + stream.read()
        return
    for line in _lines(first, stream):
        name = line.rstrip(b"\r\n").decode(sys.getfilesystemencoding(), "surrogateescape")
        if name.strip():
            yield name, Path(name)


def _lines(first: bytes, stream: io.BufferedIOBase | Any) -> Iterator[bytes]:
    yield first
    yield from stream


# From results to output


def _write_text(results: Iterable[tuple[str, Result]], _: Choice) -> None:
    for name, result in results:
        click.echo(_printable(name))
        if isinstance(result, ResnetExportError):
            click.echo(f"  failed: {_printable(_sentence(result))}")
            continue
        for prediction in result:
            click.echo(f"  {prediction.probability:7.2%}  {prediction.label}")
        sys.stdout.flush()


def _write_lines(results: Iterable[tuple[str, Result]], _: Choice) -> None:
    for name, result in results:
        click.echo(_printable(json.dumps(_record(name, result), ensure_ascii=False)))
        sys.stdout.flush()


def _write_csv(results: Iterable[tuple[str, Result]], _: Choice) -> None:
    click.echo(_csv([_COLUMNS]), nl=False)
    for name, result in results:
        if isinstance(result, ResnetExportError):
            rows: list[tuple[object, ...]] = [(name, "", "", "", "", _sentence(result))]
        else:
            rows = [
                (name, rank, one.index, one.label, f"{one.probability:.6g}", "")
                for rank, one in enumerate(result, 1)
            ]
        click.echo(_csv(rows), nl=False)
        sys.stdout.flush()


def _write_json(results: Iterable[tuple[str, Result]], choice: Choice) -> None:
    records = [_record(name, result) for name, result in results]
    found = {"choice": msgspec.to_builtins(choice), "images": records}
    click.echo(_printable(json.dumps(found, indent=2, ensure_ascii=False)))


_WRITERS: dict[str, Callable[[Iterable[tuple[str, Result]], Choice], None]] = {
    "text": _write_text,
    "jsonl": _write_lines,
    "csv": _write_csv,
    "json": _write_json,
}


def _record(name: str, result: Result) -> dict[str, object]:
    if isinstance(result, ResnetExportError):
        return {"image": name, "error": _sentence(result)}
    return {"image": name, "predictions": msgspec.to_builtins(result)}


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return _printable(text.getvalue())


def _sentence(error: ResnetExportError) -> str:
    return " ".join(str(error).split())


def _printable(text: str) -> str:
    """Names of files need not be UTF-8: what is not is escaped, as JSON escapes it."""
    return text.encode("utf-8", "backslashreplace").decode()
