"""The sample of the preprocessing in golden.npz: read back as it was written, and refused when it is not announced."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from resnet_export.runtime.bundle.golden import Golden, Sample, encode_golden, read_golden
from resnet_export.runtime.bundle.manifest import MANIFEST_NAME, encode_manifest, read_manifest
from resnet_export.runtime.errors import IntegrityError
from tests.parity_bundle import write
from tests.tiny_bundle import FP32, SIDE

SAMPLE = Sample(
    file=b"\x89PNG and the rest",
    crop=np.arange(SIDE * SIDE * 3, dtype=np.uint32).astype(np.uint8).reshape(SIDE, SIDE, 3),
    values=np.linspace(-2, 3, 768, dtype=np.float32).reshape(3, 256),
)


def bundle(folder: Path, sample: Sample | None, announced: int | None) -> Path:
    write(folder, (FP32,))
    golden = read_golden(folder)
    data = encode_golden(Golden(golden.images, golden.logits, sample))
    manifest = read_manifest(folder)
    info = msgspec.structs.replace(
        manifest.golden,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        sample_bytes=announced,
    )
    (folder / "golden.npz").write_bytes(data)
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(manifest, golden=info)))
    return folder


def test_a_sample_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    found = read_golden(bundle(tmp_path / "b", SAMPLE, len(SAMPLE.file))).sample
    assert found is not None
    assert found.file == SAMPLE.file
    assert np.array_equal(found.crop, SAMPLE.crop)
    assert np.array_equal(found.values, SAMPLE.values)


def test_a_bundle_without_a_sample_is_read_as_before(tmp_path: Path) -> None:
    assert read_golden(bundle(tmp_path / "b", None, None)).sample is None


@pytest.mark.parametrize(("sample", "announced"), [(SAMPLE, None), (None, 17), (SAMPLE, 16), (SAMPLE, 18)])
def test_a_sample_that_is_not_what_the_manifest_announces_is_refused(
    tmp_path: Path, sample: Sample | None, announced: int | None
) -> None:
    with pytest.raises(IntegrityError, match="not what the manifest says"):
        read_golden(bundle(tmp_path / "b", sample, announced))


@pytest.mark.parametrize(
    "change",
    [
        {"file": b""},
        {"crop": SAMPLE.crop[1:]},
        {"crop": SAMPLE.crop.astype(np.float32)},
        {"values": SAMPLE.values[:, :255]},
        {"values": SAMPLE.values.astype(np.float64)},
    ],
    ids=["no bytes", "small crop", "float crop", "255 values", "wide values"],
)
def test_a_sample_of_another_shape_or_type_is_not_written(change: dict[str, object]) -> None:
    whole = {"file": SAMPLE.file, "crop": SAMPLE.crop, "values": SAMPLE.values} | change
    golden = Golden(
        np.zeros((1, SIDE, SIDE, 3), np.uint8),
        {"eager": np.zeros((1, 5), np.float32)},
        Sample(**whole),  # type: ignore[arg-type]
    )
    with pytest.raises(ValueError, match="the sample has"):
        encode_golden(golden)
