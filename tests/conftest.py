"""Fixtures that more than one part of the suite needs."""

from __future__ import annotations

import importlib
import importlib.util
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from resnet_export.exporter.cli.process import settle

settle()  # as every command does: an export takes half the time when the collector looks at torch less often


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision beside a CPU build of torch.

    Its wheel is built for CUDA and looks operator names up at import that a CPU torch lacks; they are defined
    here, and stay unusable. Transforms on PIL images and the classifiers of `torchvision.models` work.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    names = set(re.findall(r"torchvision::(\w+)", source)) | set(
        re.findall(r'register_meta\("(\w+)"\)', source)
    )
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(names):
        library.define(f"{name}(Tensor x) -> Tensor")
    module = importlib.import_module("torchvision")
    module._library = library  # it unregisters its operators when it is collected
    return module


@pytest.fixture(scope="session")
def resnet18_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ResNet-18 at 64 pixels with fp16, exported once for the whole run. Not to be written to."""
    from resnet_export.exporter import ExportSpec, ModelSpec, export

    out = tmp_path_factory.mktemp("bundles") / "resnet18"
    export(ModelSpec(depth=18, image_size=64), ExportSpec(fp16=True), out)
    return out


@pytest.fixture(scope="session")
def checkpoints(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that outlives the run, for `tests.trained.checkpoint`: training takes longer than most tests."""
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)  # -p no:cacheprovider leaves none
    return cache.mkdir("checkpoints") if cache is not None else tmp_path_factory.mktemp("checkpoints")


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """A function that does what Ctrl-C does. A shell that starts the suite in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def photograph_files() -> list[Path]:
    """The two photographs that scikit-learn ships, as files."""
    from sklearn.datasets import load_sample_images

    return [Path(name) for name in load_sample_images().filenames]
