"""NVIDIA's real Python bindings of standard TensorRT, without its libraries and without a GPU.

The libraries have no package on the index, the bindings do. Over stub libraries that export the nine C
functions they bind to, they import and can be inspected: every class, enumerator, property and signature is
the real one. That shows that calls fit the API of a version, and nothing about a GPU.

    python -m tests.nvidia_bindings    install the pinned bindings into the virtual environment

Two versions cannot be imported in one process, nor installed in one environment, so each has a folder of
its own and is read in a process of its own.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

# TensorRT 10.3 is what JetPack 6 has, the oldest that is supported; 11.4 is the newest.
PINS = {"10.3": "tensorrt-cu12-bindings==10.3.0", "11.4": "tensorrt-cu13-bindings==11.4.0.106"}
RTX = "rtx"
# The lean runtime is a real library: it loads without a GPU, though it runs nothing there.
LEAN = "lean-11.4"
LEAN_PINS = ("tensorrt-lean-cu13-libs==11.4.0.106", "tensorrt-lean-cu13-bindings==11.4.0.106")

NEWEST_PYTHON = (3, 12)  # of the bindings of TensorRT 10.3

FOLDER = Path(sys.prefix) / "nvidia-bindings"

_STUBBED = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)

# Runs in the process that has the bindings: every class with its members, as JSON on standard output.
_DESCRIBE = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
classes = {}
for name, cls in vars(module).items():
    if not isinstance(cls, type):
        continue
    members = {}
    for key in dir(cls):
        value = getattr(cls, key)
        if key.startswith("_") and key != "__init__":
            continue
        if isinstance(value, property):
            members[key] = {"writable": value.fset is not None}
        elif callable(value) and not isinstance(value, type):
            members[key] = {"doc": value.__doc__ or ""}
    enumerators = {key: int(value) for key, value in getattr(cls, "__members__", {}).items()}
    classes[name] = {"members": members, "enumerators": enumerators}
json.dump({"version": module.__version__, "classes": classes}, sys.stdout)
"""


@dataclass(frozen=True)
class Api:
    """The Python API of one version, as data. `classes` maps a name to its members and enumerators."""

    version: str
    classes: dict[str, Any]

    def has(self, path: str) -> bool:
        """Whether "Class", "Class.member" or "Enumeration.ENUMERATOR" exists."""
        name, _, member = path.partition(".")
        found = self.classes.get(name)
        return found is not None and (
            not member or member in found["members"] or member in found["enumerators"]
        )

    def is_writable(self, name: str, member: str) -> bool:
        """Whether a property can be assigned to."""
        return bool(self.classes[name]["members"].get(member, {}).get("writable"))

    def enumeration(self, name: str) -> Any:
        """The enumeration `name`, with the values of the bindings."""
        return enum.IntEnum(name, self.classes[name]["enumerators"])

    def double(self, name: str) -> Any:
        """An autospecced instance of class `name`: unknown members and wrong arguments are errors."""
        return mock.create_autospec(self._class(name), instance=True, spec_set=True)

    @functools.cached_property
    def _made(self) -> dict[str, type]:
        return {}

    def _class(self, name: str) -> type:
        if name not in self._made:
            namespace: dict[str, Any] = {}
            for key, member in self.classes[name]["members"].items():
                namespace[key] = (
                    property(lambda self: None) if "writable" in member else _method(key, member["doc"])
                )
            namespace.pop("__init__", None)
            self._made[name] = type(name, (), namespace)
        return self._made[name]


@functools.cache
def api(version: str) -> Api:
    """The API of a version of `PINS`, or of the installed TensorRT for RTX. Skips where it cannot be had."""
    if version == RTX:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
        return _describe("tensorrt_rtx", {})
    bindings = FOLDER / version
    if not bindings.is_dir():
        if sys.version_info[:2] > NEWEST_PYTHON:
            pytest.skip(f"NVIDIA has no bindings of TensorRT {version} for this Python")
        pytest.fail(
            f"the bindings of TensorRT {version} are not installed; run make test, or {__name__} as a module"
        )
    if version == LEAN:
        return _describe("tensorrt_lean_bindings", {"PYTHONPATH": str(bindings)})
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler for the stub libraries")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "stub.c")
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _STUBBED))
        major = version.partition(".")[0]
        for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            target = Path(folder, f"lib{library}.so.{major}")
            subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source], check=True)
        return _describe("tensorrt_bindings", {"LD_LIBRARY_PATH": folder, "PYTHONPATH": str(bindings)})


def _describe(module: str, environment: dict[str, str]) -> Api:
    output = subprocess.run(
        [sys.executable, "-c", _DESCRIBE, module],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    return Api(**json.loads(output))


def _method(name: str, doc: str) -> Any:
    """A function with the signature that pybind11 wrote into the docstring; any arguments for an overloaded
    one.
    """
    first = doc.splitlines()[0] if doc else ""
    match = re.fullmatch(rf"{re.escape(name)}\((.*)\)(?: -> .*)?", first)

    def function(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    if match is None or "*args" in match[1]:
        return function
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = []
    for part in _split(match[1]):
        declared, _, default = part.partition("=")
        parameters.append(
            inspect.Parameter(
                declared.partition(":")[0].strip(),
                kind,
                default=default.strip() if default else inspect.Parameter.empty,
            )
        )
    # Some of the declared orders are not possible in Python; those methods take anything.
    with contextlib.suppress(ValueError):
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def _split(arguments: str) -> list[str]:
    """Split at the commas that no bracket encloses."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(arguments):
        depth += (character in "[({<") - (character in "])}>")
        if character == "," and depth == 0:
            parts.append(arguments[start:index])
            start = index + 1
    return [part for part in (*parts, arguments[start:]) if part.strip()]


def install() -> None:
    """Install every pinned version that is not there yet."""
    for version, requirements in [*((version, (pin,)) for version, pin in PINS.items()), (LEAN, LEAN_PINS)]:
        target = FOLDER / version
        if target.is_dir():
            continue
        partial = FOLDER / f".{version}"
        shutil.rmtree(partial, ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(partial),
            *requirements,
        ]
        done = subprocess.run(command, check=sys.version_info[:2] <= NEWEST_PYTHON)
        if done.returncode == 0:
            partial.rename(target)


if __name__ == "__main__":
    install()
