"""Published weights: the cache, a download, and what is said when neither gives the file."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest

from resnet_export.exporter.models import zoo
from resnet_export.exporter.models.download import fetch
from resnet_export.exporter.models.zoo import PublishedWeights
from resnet_export.runtime.errors import CheckpointError

DATA = bytes(range(256)) * 9000  # more than two chunks
GENUINE = PublishedWeights("IMAGENET1K_V1", f"resnet18-{hashlib.sha256(DATA).hexdigest()[:8]}.pth", 0, 0, 256)
FORGED = PublishedWeights("IMAGENET1K_V1", "resnet18-00000000.pth", 0, 0, 256)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "server"
    folder.mkdir()
    for published in (GENUINE, FORGED):
        (folder / published.file).write_bytes(DATA)
    monkeypatch.setattr(zoo, "_HOST", f"{folder.as_uri()}/")
    return folder


def test_a_file_is_downloaded_once_and_then_taken_from_the_cache(cache: Path, server: Path) -> None:
    assert fetch(GENUINE) == cache / GENUINE.file
    assert (cache / GENUINE.file).read_bytes() == DATA
    (server / GENUINE.file).unlink()
    assert fetch(GENUINE) == cache / GENUINE.file
    assert [path.name for path in cache.iterdir()] == [GENUINE.file]


def test_a_file_with_another_hash_never_reaches_the_cache(cache: Path, server: Path) -> None:
    with pytest.raises(CheckpointError, match="cut short or altered"):
        fetch(FORGED)
    assert list(cache.iterdir()) == []


def test_without_a_network_the_address_the_cache_and_the_reason_are_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:  # bound, so that nobody else takes the port, and not listening
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(zoo, "_HOST", f"http://127.0.0.1:{unused.getsockname()[1]}/")
        with pytest.raises(CheckpointError) as caught:
            fetch(GENUINE)
    message = str(caught.value)
    assert GENUINE.url in message
    assert str(cache / GENUINE.file) in message
    assert "Connection refused" in message
    assert "\n" not in message
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(cache: Path, server: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.touch()
    with pytest.raises(CheckpointError) as caught:
        fetch(GENUINE)
    assert "File exists" in str(caught.value)
    assert str(cache) in str(caught.value)
