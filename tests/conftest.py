"""Fixtures that more than one part of the suite needs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from resnet_export.exporter.cli.process import settle

settle()  # as every command does: an export takes half the time when the collector looks at torch less often


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of this run's own: no test writes into the user's, or reads what an earlier run left there."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output goes to a log, whatever the terminal that the suite was started from: sentences are one line each."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, also beside a CPU build of torch: transforms and the classifiers of `torchvision.models` work."""
    from resnet_export.exporter.models.libraries import import_library

    return import_library("torchvision")


@pytest.fixture(scope="session")
def timm(torchvision: ModuleType) -> ModuleType:
    """timm, beside that torchvision."""
    from resnet_export.exporter.models.libraries import import_library

    return import_library("timm")


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
