"""The bundle format: what is read, what is refused, and that nothing read from disk is trusted."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_export.runtime.bundle.golden import Golden, encode_golden, read_golden
from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    decode_manifest,
    encode_manifest,
    json_schema,
    read_artifact,
    read_file,
    read_manifest,
    read_stable,
    verify_bundle,
)
from resnet_export.runtime.errors import BundleError, IntegrityError, SchemaError
from tests import sample_bundle

DOCS = Path(__file__).parents[3] / "docs"
Document = dict[str, Any]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    sample_bundle.write(tmp_path / "bundle", 1)
    return tmp_path / "bundle"


def document() -> Document:
    loaded: Document = json.loads(encode_manifest(sample_bundle.manifest(1)))
    return loaded


def dumped(value: object) -> bytes:
    return json.dumps(value).encode()


# --- what is written -------------------------------------------------------------------------------------


def test_a_manifest_survives_writing_and_reading() -> None:
    manifest = sample_bundle.manifest(1)
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_a_manifest_is_written_the_same_twice_as_indented_text() -> None:
    data = encode_manifest(sample_bundle.manifest(1))
    assert data == encode_manifest(sample_bundle.manifest(1))
    assert data.startswith(b'{\n  "schema": 1,\n  "model": {\n    "arch": "resnet18",\n')
    assert data.endswith(b"}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_lacks_is_not_written_as_null(value: float) -> None:
    manifest = sample_bundle.manifest(1)
    tolerances = {"fp32": msgspec.structs.replace(manifest.tolerances["fp32"], relative_error=value)}
    with pytest.raises(SchemaError, match=r"\$\.tolerances\.fp32\.relative_error .* finite"):
        encode_manifest(msgspec.structs.replace(manifest, tolerances=tolerances))


def test_what_could_not_be_read_is_not_written() -> None:
    manifest = msgspec.structs.replace(sample_bundle.manifest(1), labels=("one",))
    with pytest.raises(SchemaError, match="1 labels for 5 classes"):
        encode_manifest(manifest)
    with pytest.raises(SchemaError, match="cannot be written"):
        encode_manifest(msgspec.structs.replace(manifest, labels=(object(),)))  # type: ignore[arg-type]


# --- the published schema --------------------------------------------------------------------------------


def test_the_published_schema_is_the_one_that_the_structs_give() -> None:
    assert json.loads((DOCS / "bundle.schema.json").read_text()) == json.loads(dumped(json_schema())), (
        "regenerate it with the command in docs/bundle.md"
    )


def test_the_published_schema_accepts_a_real_manifest_and_is_a_schema_itself() -> None:
    schema = json.loads((DOCS / "bundle.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document(), schema, cls=jsonschema.Draft202012Validator)


def _set(*keys: str | int) -> Callable[[Document, object], None]:
    def change(target: Any, value: object) -> None:
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


BROKEN = {
    "a missing key": (_set("model"), {}),
    "an unknown key": (_set("modle"), 1),
    "an unknown key further in": (_set("artifacts", 0, "percision"), "fp32"),
    "a newer schema": (_set("schema"), 2),
    "a number as text": (_set("batch", "min"), "1"),
    "a batch of zero": (_set("batch", "min"), 0),
    "an unknown precision": (_set("artifacts", 0, "precision"), "fp8"),
    "an upper-case hash": (_set("artifacts", 0, "sha256"), "A" * 64),
    "a short hash": (_set("artifacts", 0, "sha256"), "a" * 63),
    "a hash with a line end": (_set("artifacts", 0, "sha256"), "a" * 64 + "\n"),
    "a parent folder": (_set("artifacts", 0, "file"), "../model.onnx"),
    "a parent folder in the middle": (_set("artifacts", 0, "file"), "engines/../../model.onnx"),
    "an absolute path": (_set("artifacts", 0, "file"), "/etc/passwd"),
    "a backslash": (_set("artifacts", 0, "file"), "engines\\x.engine"),
    "a drive letter": (_set("artifacts", 0, "file"), "C:model.onnx"),
    "a hidden file": (_set("artifacts", 0, "file"), ".model.onnx"),
    "a file with a line end": (_set("artifacts", 0, "file"), "model.onnx\n"),
    "an empty file name": (_set("artifacts", 0, "file"), ""),
    "an empty part of a path": (_set("artifacts", 0, "file"), "engines//x"),
    "an empty artifact": (_set("artifacts", 0, "bytes"), 0),
    "an artifact of 50 GB": (_set("artifacts", 0, "bytes"), 50 * 10**9),
    "a terminal escape in a label": (_set("labels", 0), "\x1b[2Jtench"),
    "a line end in a label": (_set("labels", 0), "tench\n"),
    "a mean of five numbers": (_set("preprocessing", "mean"), [0.5] * 5),
    "a size of three numbers": (_set("preprocessing", "crop"), [8, 8, 8]),
    "a size of no pixels": (_set("preprocessing", "resize"), [8, 0]),
    "a list for an object": (_set("preprocessing"), []),
    "a date without a time": (_set("provenance", "created"), "2026-03-01"),
    "an agreement above one": (_set("tolerances", "fp32"), {"top1_agreement": 1.5}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_library_and_published_schema_refuse_alike(name: str) -> None:
    change, value = BROKEN[name]
    broken = document()
    change(broken, value)
    with pytest.raises(SchemaError):
        decode_manifest(dumped(broken))
    schema = json.loads((DOCS / "bundle.schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema, cls=jsonschema.Draft202012Validator)


def test_every_key_of_the_schema_is_explained_in_the_documentation() -> None:
    text = (DOCS / "bundle.md").read_text()
    sections = re.split(r"^#+ ", text, flags=re.MULTILINE)
    for name, definition in json_schema()["$defs"].items():
        if "properties" not in definition:
            continue
        explained = [section for section in sections if f"({name})" in section.split("\n", 1)[0]]
        assert len(explained) == 1, f"docs/bundle.md has no section that names ({name})"
        keys = set(re.findall(r"^\| `(\w+)`", explained[0], flags=re.MULTILINE))
        assert keys == set(definition["properties"]), name


# --- what the schema cannot say --------------------------------------------------------------------------

CONTRADICTIONS = {
    "fewer labels than classes": (_set("labels"), ["one"], "1 labels for 5 classes"),
    "output of another width": (
        _set("outputs", 0, "shape"),
        ["N", 6],
        r"outputs\[0\] is 'logits' \[N, 6\], expected 'logits' \[N, 5\]",
    ),
    "output called otherwise": (
        _set("outputs", 0, "name"),
        "probabilities",
        r"outputs\[0\] is 'probabilities'",
    ),
    "output of bytes": (_set("outputs", 0, "dtype"), "uint8", "output 'logits' is uint8 NC"),
    "output of another layout": (_set("outputs", 0, "layout"), "NCHW", "expected float32 NC"),
    "two outputs of one name": (
        _set("outputs"),
        [{"name": "logits", "dtype": "float32", "layout": "NC", "shape": ["N", 5]}] * 2,
        "two tensors are called 'logits'",
    ),
    "output without a batch axis": (
        _set("outputs"),
        [
            {"name": "logits", "dtype": "float32", "layout": "NC", "shape": ["N", 5]},
            {"name": "c5", "dtype": "float32", "layout": "NCHW", "shape": [1, 2, 3, 4]},
        ],
        r"output 'c5' has shape \[1, 2, 3, 4\], expected N first",
    ),
    "a further output without golden ones": (
        _set("outputs"),
        [
            {"name": "logits", "dtype": "float32", "layout": "NC", "shape": ["N", 5]},
            {"name": "embedding", "dtype": "float32", "layout": "NC", "shape": ["N", 8]},
        ],
        "golden.outputs are empty, expected the outputs but the first: embedding",
    ),
    "golden outputs of nothing": (_set("golden", "outputs"), {"c5": 1}, "golden.outputs are c5, expected"),
    "fixed batch": (_set("input", "shape"), [1, 3, 8, 8], r"input is .*\[1, 3, 8, 8\], expected .*\[N, 3"),
    "input of another size": (_set("input", "shape"), ["N", 3, 9, 9], "as preprocessing.crop"),
    "float input of a graph that normalizes": (_set("preprocessing", "in_graph"), True, "uint8 NHWC"),
    "smallest batch above the usual": (_set("batch", "min"), 3, "batch is 3, 2, 4, expected min ≤ opt ≤ max"),
    "profile out of order": (
        _set("artifacts", 2, "engine", "profiles", 0, "max"),
        1,
        "profile 0 of artifact 'rtx-fp16' is 1, 2, 1",
    ),
    "crop larger than the resized image": (_set("preprocessing", "resize"), 7, "larger than"),
    "crop wider than the squashed image": (_set("preprocessing", "resize"), [8, 7], "larger than"),
    "a mean for other channels": (_set("preprocessing", "mean"), [0.5], r"expected .*\[N, 1, 8, 8\]"),
    "a deviation for other channels": (
        _set("preprocessing", "std"),
        [0.5],
        "3 numbers and preprocessing.std 1",
    ),
    "input of other sides": (_set("preprocessing", "crop"), [8, 6], r"expected .*\[N, 3, 8, 6\]"),
    "division by zero": (_set("preprocessing", "std"), [0.2, 0.0, 0.2], "positive"),
    "untrained with a hash": (_set("model", "weights", "sha256"), "a" * 64, "untrained, expected a seed"),
    "trained without a hash": (_set("model", "weights", "source"), "file", "expected a sha256"),
    "two artifacts of one name": (_set("artifacts", 1, "name"), "fp32", "two artifacts are called 'fp32'"),
    "two artifacts of one file": (_set("artifacts", 1, "file"), "model.onnx", "'model.onnx' is named twice"),
    "two files that differ in case": (_set("artifacts", 1, "file"), "Model.ONNX", "is named twice"),
    "the manifest as an artifact": (_set("artifacts", 1, "file"), "manifest.json", "named as a file"),
    "the manifest in capitals": (_set("files", 1, "file"), "MANIFEST.json", "named as a file"),
    "a file that is also a folder": (_set("files", 1, "file"), "model.onnx/x", "is a file and the folder of"),
    "no fp32 graph": (_set("artifacts", 0, "precision"), "fp16", "no artifact is an fp32 ONNX graph"),
    "an engine without a description": (_set("artifacts", 2, "engine"), None, "lacks the key engine"),
    "a graph with one": (
        lambda d, _: d["artifacts"][0].update(engine=d["artifacts"][2]["engine"]),
        None,
        "'onnx' has the key engine",
    ),
    "an engine of a graph that is not there": (
        _set("artifacts", 2, "engine", "source"),
        "int8",
        "built from 'int8', which is no ONNX",
    ),
    "an engine of other weights": (
        _set("artifacts", 2, "engine", "source_sha256"),
        "0" * 64,
        "built from another 'fp16'",
    ),
    "a layer report that is not there": (
        _set("artifacts", 2, "engine", "layers"),
        "engines/none.json",
        "'engines/none.json' of engine 'rtx-fp16' is not among",
    ),
    "no eager outputs": (_set("golden", "stages"), ["onnx"], "expected 'eager' among them"),
    "a stage twice": (_set("golden", "stages"), ["eager", "eager"], "'eager' twice"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_refused_in_one_sentence(name: str) -> None:
    change, value, sentence = CONTRADICTIONS[name]
    broken = document()
    change(broken, value)
    with pytest.raises(SchemaError, match=sentence) as caught:
        decode_manifest(dumped(broken))
    assert "\n" not in str(caught.value)


# --- hostile manifests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"schema": 1',
        b'{"schema": "1"}',
        b'{"schema": null}',
        b'{"schema": 1.5}',
        b"\xff\xfe{}",
        b'{"schema": 1, "model": "\xff"}',
        b"[" * 1_000_000,
        b'{"a":' * 500_000,
        b'{"x":' + b"[" * 500_000 + b"]" * 500_000 + b', "schema": 1}',
        b'{"schema": 1, "batch": {"min": ' + b"9" * 5000 + b"}}",
        b'{"schema": NaN}',
        b'{"schema": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(SchemaError) as caught:
        decode_manifest(data)
    assert "export the bundle again" in str(caught.value) or "upgrade" in str(caught.value)


def test_a_newer_schema_is_refused_by_its_number_and_not_by_its_keys() -> None:
    with pytest.raises(SchemaError, match="has schema 7, this version reads schema 1; upgrade resnet-export"):
        decode_manifest(b'{"schema": 7, "new": true}')
    with pytest.raises(SchemaError, match=r"has schema 0, .* export the bundle again"):
        decode_manifest(b'{"schema": 0}')


def test_an_oversized_manifest_is_refused_unread(bundle: Path) -> None:
    with (bundle / MANIFEST_NAME).open("r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match="at most"):
        read_manifest(bundle)
    with pytest.raises(SchemaError, match="at most"):
        decode_manifest(b" " * (MAX_MANIFEST_BYTES + 1))


def test_sizes_that_are_refused_leave_nothing_for_the_garbage_collector_to_fall_over() -> None:
    for value in (
        [],
        [1],
        ["x", 1],
        [1, "x"],
        [1, None],
        [[1], 1],
        {},
        [1, 0],
        [0, 1],
        0,
        1.5,
        [1, 2, 3],
    ) * 30:
        broken = document()
        broken["preprocessing"]["crop"] = broken["preprocessing"]["resize"] = value
        with pytest.raises(SchemaError):
            decode_manifest(dumped(broken))
        # What a refusal leaves is young. A fixed-length tuple in a union crashes here as it does in a collection of all
        # generations, which takes a third of a second in a process that has run other tests.
        gc.collect(0)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_no_damage_to_a_manifest_raises_anything_but_a_schema_error(data: st.DataObject) -> None:
    raw = bytearray(encode_manifest(sample_bundle.manifest(1)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "double"])):
            case "flip":
                raw[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 40))]
            case "insert":
                raw[at:at] = data.draw(st.sampled_from([b"null", b"-1", b'"', b"{", b"[1e400]", b"\\u0000"]))
            case "double":
                raw[at:at] = raw[at : at + 100]
        if not raw:
            break
    try:
        manifest = decode_manifest(bytes(raw))
    except SchemaError:
        return
    assert decode_manifest(encode_manifest(manifest)) == manifest


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def _places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


PLACES = list(_places(document()))


@settings(max_examples=400, deadline=None)
@given(place=st.sampled_from(PLACES), value=json_values)
def test_no_value_in_any_place_raises_anything_but_a_schema_error(
    place: tuple[str | int, ...], value: object
) -> None:
    broken = document()
    _set(*place)(broken, value)
    try:
        manifest = decode_manifest(dumped(broken))
    except SchemaError:
        return
    assert decode_manifest(encode_manifest(manifest)) == manifest


# --- reading files ---------------------------------------------------------------------------------------


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_every_file_of_a_bundle_is_read_and_checked(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert verify_bundle(str(bundle)) == manifest
    for name, data in sample_bundle.contents(1).items():
        assert read_file(bundle, name, sha256(data)) == data
    assert read_artifact(bundle, manifest.artifact("fp16")) == sample_bundle.contents(1)["model.fp16.onnx"]


def test_an_unknown_artifact_is_refused_with_the_names_there_are(bundle: Path) -> None:
    with pytest.raises(BundleError, match="no artifact 'int8'; it has fp32, fp16, rtx-fp16"):
        read_manifest(bundle).artifact("int8")


@pytest.mark.parametrize("file", [info.file for info in sample_bundle.manifest(1).contents()])
def test_a_changed_byte_anywhere_is_found(bundle: Path, file: str) -> None:
    data = bytearray((bundle / file).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / file).write_bytes(data)
    with pytest.raises(IntegrityError, match=f"'{file}' has sha256"):
        verify_bundle(bundle)


def test_a_file_of_another_size_is_refused_before_it_is_read(bundle: Path) -> None:
    artifact = read_manifest(bundle).artifact("fp32")
    with (bundle / artifact.file).open("r+b") as file:
        file.truncate(2**40)  # sparse: reading it would take a terabyte of memory
    with pytest.raises(IntegrityError, match=r"1,099,511,627,776 bytes, expected 2,000"):
        read_artifact(bundle, artifact)
    with pytest.raises(IntegrityError, match=r"1,099,511,627,776 bytes, expected at most 2,147,483,647"):
        read_file(bundle, artifact.file, artifact.sha256)


def test_a_missing_file_is_refused_by_name(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"'model.onnx' of the bundle .*No such file"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    "file",
    [
        "../secret",
        "engines/../../secret",
        "/etc/hostname",
        "C:/secret",
        "a\\..\\..\\secret",
        "a\0b",
        "..",
        ".",
    ],
)
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path, file: str) -> None:
    (bundle.parent / "secret").write_bytes(b"secret")
    with pytest.raises(IntegrityError, match=r"no path inside the bundle|not a regular file"):
        read_file(bundle, file, sha256(b"secret"))


def test_a_link_that_leaves_the_bundle_is_refused_even_with_the_right_hash(bundle: Path) -> None:
    shutil.move(bundle / "model.onnx", bundle.parent / "elsewhere")
    (bundle / "model.onnx").symlink_to("../elsewhere")
    with pytest.raises(IntegrityError, match=r"'model.onnx' points outside the bundle"):
        verify_bundle(bundle)


def test_a_linked_folder_that_leaves_the_bundle_is_refused(bundle: Path) -> None:
    shutil.move(bundle / "engines", bundle.parent / "elsewhere")
    (bundle / "engines").symlink_to(bundle.parent / "elsewhere")
    with pytest.raises(IntegrityError, match="points outside the bundle"):
        verify_bundle(bundle)


def test_a_link_that_stays_inside_is_followed(bundle: Path) -> None:
    (bundle / "blobs").mkdir()
    shutil.move(bundle / "model.onnx", bundle / "blobs" / "1")
    (bundle / "model.onnx").symlink_to("blobs/1")
    assert sample_bundle.version_of(verify_bundle(bundle)) == 1


def test_a_link_to_itself_is_refused(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to("model.onnx")
    with pytest.raises(IntegrityError, match="loop"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", ["model.onnx", MANIFEST_NAME])
def test_a_fifo_is_refused_and_not_waited_for(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match="not a regular file"):
        verify_bundle(bundle)


def test_a_folder_in_place_of_a_file_is_refused(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()
    with pytest.raises(IntegrityError, match="not a regular file"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", ["nothing", "file", "empty", "a\0b", "file/below"])
def test_what_is_no_bundle_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="bundle"):
        read_manifest(tmp_path / name)


def test_the_root_and_the_current_folder_are_no_bundles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("/", ".", ""):
        with pytest.raises(BundleError, match="is not a bundle"):
            read_manifest(path)


def test_a_bundle_is_found_through_a_link_and_a_relative_path(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle.parent / "link").symlink_to(bundle)
    monkeypatch.chdir(bundle.parent)
    for path in ("link", "./bundle/", "link/../bundle"):
        assert sample_bundle.version_of(verify_bundle(path)) == 1


# --- reading while somebody writes -----------------------------------------------------------------------


def test_a_reader_that_is_overtaken_by_an_export_reads_the_new_bundle_as_a_whole(bundle: Path) -> None:
    seen = []

    def load(manifest: Manifest) -> bytes:
        seen.append(sample_bundle.version_of(manifest))
        if len(seen) == 1:
            sample_bundle.write(bundle, 2)
        return read_artifact(bundle, manifest.artifact("fp32"))

    assert read_stable(bundle, load) == sample_bundle.contents(2)["model.onnx"]
    assert seen == [1, 2]


def test_damage_is_not_mistaken_for_an_export_under_way(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"damaged")
    calls = []

    def load(manifest: Manifest) -> bytes:
        calls.append(manifest)
        return read_artifact(bundle, manifest.artifact("fp32"))

    with pytest.raises(IntegrityError):
        read_stable(bundle, load)
    assert len(calls) == 1


# --- golden outputs --------------------------------------------------------------------------------------


def test_golden_outputs_survive_writing_and_reading(bundle: Path) -> None:
    expected, found = sample_bundle.golden(1), read_golden(bundle)
    np.testing.assert_array_equal(found.images, expected.images)
    assert found.images.dtype == np.uint8
    assert found.logits.keys() == expected.logits.keys()
    for stage, logits in expected.logits.items():
        np.testing.assert_array_equal(found.logits[stage], logits)


def test_golden_outputs_are_plain_npz_for_anybody(bundle: Path) -> None:
    with np.load(bundle / "golden.npz", allow_pickle=False) as archive:
        assert sorted(archive) == ["images", "logits.eager", "logits.fp16", "logits.onnx"]
        np.testing.assert_array_equal(archive["logits.eager"], sample_bundle.golden(1).logits["eager"])


def test_golden_bytes_depend_on_nothing_but_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = sample_bundle.golden(1)
    shuffled = Golden(np.asfortranarray(golden.images), dict(reversed(golden.logits.items())))
    first = encode_golden(golden)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert encode_golden(shuffled) == first
    assert {info.date_time for info in zipfile.ZipFile(io.BytesIO(first)).infolist()} == {
        (1980, 1, 1, 0, 0, 0)
    }


@pytest.mark.parametrize(
    "golden",
    [
        Golden(np.zeros((2, 8, 8), np.uint8), {"eager": np.zeros((2, 5), np.float32)}),
        Golden(np.zeros((0, 8, 8, 3), np.uint8), {"eager": np.zeros((0, 5), np.float32)}),
        Golden(np.zeros((2, 8, 8, 3), np.float32), {"eager": np.zeros((2, 5), np.float32)}),  # type: ignore[arg-type]
        Golden(np.zeros((2, 8, 8, 3), np.uint8), {"onnx": np.zeros((2, 5), np.float32)}),
        Golden(np.zeros((2, 8, 8, 3), np.uint8), {"eager": np.zeros((3, 5), np.float32)}),
        Golden(np.zeros((2, 8, 8, 3), np.uint8), {"eager": np.zeros((2, 5), np.float64)}),  # type: ignore[dict-item]
    ],
)
def test_arrays_that_no_reader_would_take_are_not_written(golden: Golden) -> None:
    with pytest.raises(ValueError, match="golden"):
        encode_golden(golden)


def _npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _compressed() -> bytes:
    golden = sample_bundle.golden(1)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=golden.images, **{f"logits.{s}": a for s, a in golden.logits.items()})
    return buffer.getvalue()


def _lying_header() -> bytes:
    # Announces 256 TB of images and holds none.
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8, 3)}
    np.lib.format.write_array_header_1_0(header, shape)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("images", "logits.eager", "logits.onnx", "logits.fp16"):
            archive.writestr(f"{name}.npy", header.getvalue())
    return buffer.getvalue()


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("exit 1",)


GOLDEN_LOGITS = {f"logits.{stage}": logits for stage, logits in sample_bundle.golden(1).logits.items()}
GOLDEN_DAMAGE = {
    "no archive": (b"not a zip", "zip"),
    "nothing in it": (_npz(), "expected images"),
    "an array too few": (_npz(images=sample_bundle.golden(1).images), "expected images, logits.eager"),
    "an array too many": (
        _npz(images=sample_bundle.golden(1).images, extra=np.zeros(1), **GOLDEN_LOGITS),
        "extra",
    ),
    "a pickle": (_npz(images=np.array([Harmful()]), **GOLDEN_LOGITS), "object"),
    "compression": (_compressed(), "compressed"),
    "a header that lies": (_lying_header(), "expected uint8"),
    "images of another size": (
        _npz(images=np.zeros((3, 9, 9, 3), np.uint8), **GOLDEN_LOGITS),
        r"\(3, 9, 9, 3\)",
    ),
    "images as floats": (_npz(images=np.zeros((3, 8, 8, 3), np.float32), **GOLDEN_LOGITS), "float32"),
    "another byte order": (
        _npz(images=sample_bundle.golden(1).images, **{k: v.astype(">f4") for k, v in GOLDEN_LOGITS.items()}),
        ">f4",
    ),
}


@pytest.mark.parametrize("name", GOLDEN_DAMAGE)
def test_golden_outputs_that_are_not_what_the_manifest_announces_are_refused(
    tmp_path: Path, name: str
) -> None:
    data, sentence = GOLDEN_DAMAGE[name]
    files = sample_bundle.contents(1) | {"golden.npz": data}
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    (tmp_path / MANIFEST_NAME).write_bytes(encode_manifest(sample_bundle.manifest(1, files)))
    with pytest.raises(IntegrityError, match=sentence):
        read_golden(tmp_path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_damage_to_golden_outputs_raises_anything_but_an_integrity_error(data: st.DataObject) -> None:
    from resnet_export.runtime.bundle import golden as module

    raw = bytearray(sample_bundle.contents(1)["golden.npz"])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    manifest = sample_bundle.manifest(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_artifact", lambda *_: bytes(raw))
        patch.setattr(module, "read_stable", lambda _, load: load(manifest))
        try:
            found = read_golden("anywhere")
        except IntegrityError:
            return
    assert found.images.shape == (3, 8, 8, 3)
