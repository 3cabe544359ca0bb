"""The two TensorRT libraries as one: import, log, and messages that a person can read."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from resnet_export.runtime.bundle.engine_header import INSTALL, TITLES, Variant
from resnet_export.runtime.errors import DependencyError

# An error text without its wrapping: "IBuilder::build: Error Code 4: API Usage Error (TEXT. In f at
# file.cpp:1)".
_WRAPPING = re.compile(
    r"^(?:\[.*?\] |[\w:]+: )?Error Code \d+: (?:[\w ]+ \((?P<inner>.*)\)|(?P<plain>.*))$", re.DOTALL
)
_SOURCE_PREFIX = re.compile(r"^\[[\w.]+:\d+: \w+\] ")
_SOURCE_LOCATION = re.compile(r"\.? In \w+ at /\S+:\d+\)?$")
# What every build without a GPU says in passing, whatever is really wrong.
_NOISE = "CUDA driver version is insufficient for CUDA runtime version"


_LEAN = ("the lean runtime of TensorRT", "pip install 'resnet-export[tensorrt-lean]'")


@dataclass(frozen=True)
class LogMessage:
    """One message of TensorRT. `severity` is "INTERNAL_ERROR", "ERROR", "WARNING", "INFO" or "VERBOSE"."""

    severity: str
    text: str


def load_library(name: Variant | Literal["tensorrt_lean"]) -> Any:
    """Import the Python bindings of a variant, or of the lean runtime.

    Raises DependencyError, with the command that installs them.
    """
    lean = name == "tensorrt_lean"
    title, install = _LEAN if name == "tensorrt_lean" else (TITLES[name], INSTALL[name])
    try:
        return importlib.import_module("tensorrt_lean_bindings" if lean else name)
    except (ImportError, OSError) as error:
        raise DependencyError(f"{title} cannot be imported ({error}); install it with {install}") from error


@functools.cache
def process_log(library: Any) -> Any:
    """Return the logger of this process for `library`.

    TensorRT keeps the first logger that it is given and ignores all later ones, so there is one, and whoever
    wants the messages of a stretch of work captures them.
    """

    class ProcessLog(library.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            # By identity: two captures of the same messages are equal lists. Each change and the copy is one
            # operation of a dict, so that neither another thread nor garbage that is collected meanwhile, which
            # may log and capture too, comes in between.
            self.captures: dict[int, list[LogMessage]] = {}

        def log(self, severity: Any, msg: str) -> None:
            for capture in self.captures.copy().values():
                capture.append(LogMessage(severity.name, msg))

        @contextlib.contextmanager
        def capture(self) -> Iterator[list[LogMessage]]:
            """Collect every message that arrives while the block runs, from any thread."""
            messages: list[LogMessage] = []
            self.captures[id(messages)] = messages
            try:
                yield messages
            finally:
                del self.captures[id(messages)]

    return ProcessLog()


def make_runtime(library: Any, options: Mapping[str, Any]) -> Any:
    """Return what loads engines that were built with `options`, as the manifest records them."""
    runtime = library.Runtime(process_log(library))
    if options.get("version_compatible"):
        runtime.engine_host_code_allowed = True  # such an engine carries a runtime of its own
    if "dla_core" in options:
        runtime.DLA_core = options["dla_core"]
    return runtime


def invalidity(library: Any, data: bytes) -> tuple[str, ...]:
    """Ask a library whether it takes an engine, from the first bytes of it, before anything is loaded.

    Returns what speaks against it ("MALFORMED_ENGINE", "UNSUPPORTED_CC", …), nothing when nothing does or the library
    cannot tell: standard TensorRT has no such check, and TensorRT for RTX needs a GPU for all but malformed engines.
    """
    if not hasattr(library, "EngineValidity"):
        return ()
    runtime = library.Runtime(process_log(library))
    validity, found = runtime.get_engine_validity(data[: runtime.engine_header_size])
    if validity != library.EngineValidity.INVALID:
        return ()
    flags = library.EngineInvalidityDiagnostics.__members__.items()
    return tuple(name for name, flag in flags if int(found) & int(flag) and name != "CUDA_ERROR")


def errors_of(messages: Iterable[LogMessage]) -> str:
    """Return the errors among `messages` as one line of text, without source locations and repetitions."""
    texts = [
        readable(message.text)
        for message in messages
        if message.severity in ("ERROR", "INTERNAL_ERROR") and _NOISE not in message.text
    ]
    return "; ".join(dict.fromkeys(texts)) or (
        "it gave no reason, or another part of this process registered a TensorRT logger first"
    )


def readable(text: str) -> str:
    """Return an error message of TensorRT or its ONNX parser without codes, source locations and noise."""
    lines = []
    for line in text.splitlines():
        if _NOISE in line or line.startswith("Invalid Node - ") or not line.strip():
            continue
        match = _WRAPPING.match(line.strip())
        if match is not None:
            line = match["inner"] if match["inner"] is not None else match["plain"]
        line = _SOURCE_PREFIX.sub("", line.strip())
        lines.append(_SOURCE_LOCATION.sub("", line).rstrip("."))
    return "; ".join(lines) or text.strip()
