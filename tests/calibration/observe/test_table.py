"""The calibration table: what it holds, how tables add up, and which ones are refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from resnet_export.calibration.observe.calibrate import calibrate, observe_graph
from resnet_export.calibration.observe.fingerprint import add_hashes, graph_hash, image_hash
from resnet_export.calibration.observe.histogram import by_sign, observe
from resnet_export.calibration.observe.methods import METHODS
from resnet_export.calibration.observe.ranges import find_range
from resnet_export.calibration.observe.table import (
    CalibrationTable,
    build,
    decode_table,
    encode_table,
    merge,
    read_table,
    require_graph,
)
from resnet_export.runtime.errors import DatasetError, ExportError, RequestError
from tests.residual_net import images, residual_net, with_weight

HASH = "0" * 64


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return residual_net()


@pytest.fixture(scope="module")
def table(model: onnx.ModelProto) -> CalibrationTable:
    return calibrate(model, [images(12)], methods=("mse", "minmax"), threads=1)


def tiny(values: NDArray[np.float32]) -> CalibrationTable:
    return build({"t": observe(values)}, graph=HASH, observed=HASH, data=HASH, images=1, methods=("minmax",))


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (1, 2), (5, 2), (12, 3)])
def test_the_bytes_do_not_depend_on_batch_size_threads_or_order(
    model: onnx.ModelProto, table: CalibrationTable, batch: int, threads: int
) -> None:
    shuffled = images(12)[np.random.default_rng(batch).permutation(12)]
    batches = [shuffled[start : start + batch] for start in range(0, 12, batch)]
    again = calibrate(model, batches, methods=("mse", "minmax"), threads=threads)
    assert encode_table(again) == encode_table(table)


def test_tables_of_two_halves_merge_into_the_table_of_the_whole(
    model: onnx.ModelProto, table: CalibrationTable
) -> None:
    halves = [
        decode_table(encode_table(calibrate(model, [half], methods=("mse", "minmax"), threads=1)))
        for half in (images(12)[:5], images(12)[5:])
    ]
    assert encode_table(merge(halves[0], halves[1])) == encode_table(table)
    assert encode_table(merge(halves[1], halves[0])) == encode_table(table)


def test_onnxruntimes_activations_do_not_depend_on_the_batch_size(model: onnx.ModelProto) -> None:
    """What makes one image at a time a free choice, and not a way to hide a difference."""
    from resnet_export.calibration.observe.activations import activations

    singles = list(activations(model, [image[None] for image in images(6)], threads=1))
    (together,) = activations(model, [images(6)], threads=1)
    for name, values in together.items():
        np.testing.assert_array_equal(values, np.concatenate([single[name] for single in singles]))


def test_a_table_reads_back_as_it_was(table: CalibrationTable) -> None:
    assert decode_table(encode_table(table)) == table


@settings(deadline=None)
@given(
    arrays.arrays(
        np.float32, st.integers(1, 30), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_a_histogram_reads_back_bin_by_bin(values: NDArray[np.float32]) -> None:
    read, expected = decode_table(encode_table(tiny(values))).tensors["t"].stats(), observe(values)
    for side, expected_side in zip(by_sign(read), by_sign(expected), strict=True):
        np.testing.assert_array_equal(side, expected_side)
    assert (read.low, read.high) == (expected.low, expected.high)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_had_from_a_table_that_was_made_for_one(
    model: onnx.ModelProto, table: CalibrationTable, method: str
) -> None:
    seen = observe_graph(model, [images(12)], threads=1)
    read = decode_table(encode_table(table))
    for name, stats in seen.stats.items():
        assert read.range(name, method) == find_range(stats, method)  # type: ignore[arg-type]


def test_methods_worked_out_later_are_those_worked_out_at_once(
    model: onnx.ModelProto, table: CalibrationTable
) -> None:
    at_once = calibrate(model, [images(12)], methods=("mse", *METHODS), threads=1)
    assert table.with_methods(METHODS) == at_once


def test_the_tensors_are_those_that_either_graph_quantizes_in_graph_order(table: CalibrationTable) -> None:
    assert list(table.tensors) == [
        "input",
        "pool.out",
        "a.relu1.out",
        "a.conv2.out",
        "a.relu2.out",
        "b.relu1.out",
        "b.conv2.out",
        "b.down.out",
        "flatten.out",
    ]
    assert table.tensors["pool.out"].count == 12 * 8 * 8 * 8
    assert table.tensors["pool.out"].low >= 0
    assert table.images == 12


def test_a_person_can_read_it_line_by_line(table: CalibrationTable) -> None:
    text = encode_table(table).decode()
    assert text.endswith("}\n")
    assert '"pool.out": {' in text
    lines = encode_table(tiny(np.array([0, 0, 1, 1, 1.5, -0.25], np.float32))).decode().splitlines()
    assert '    "zeros": 2,' in lines
    assert '     "0": "2' + " 0" * 63 + ' 1"' in lines
    assert '     "-2": "1"' in lines


def test_a_table_of_another_graph_is_refused_with_both_hashes(
    model: onnx.ModelProto, table: CalibrationTable
) -> None:
    other = graph_hash(residual_net(seed=1))
    require_graph(table, graph=graph_hash(model), observed=graph_hash(model))
    with pytest.raises(RequestError) as refused:
        require_graph(table, graph=other)
    assert graph_hash(model) in str(refused.value)
    assert other in str(refused.value)
    with pytest.raises(RequestError, match="equalized"):
        require_graph(table, graph=graph_hash(model), observed=other)


def test_an_equalized_graphs_table_names_the_graph_that_was_exported(model: onnx.ModelProto) -> None:
    equalized = residual_net(seed=1)
    made = calibrate(equalized, [images(2)], source=model, threads=1)
    assert (made.graph, made.observed) == (graph_hash(model), graph_hash(equalized))


def test_tables_of_different_graphs_do_not_merge(table: CalibrationTable) -> None:
    for key in ("graph", "observed"):
        with pytest.raises(RequestError, match=HASH):
            merge(table, msgspec.structs.replace(table, **{key: HASH}))
    with pytest.raises(RequestError, match="different tensors"):
        merge(table, msgspec.structs.replace(table, tensors={"input": table.tensors["input"]}))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema": 1', '"schema": 2', "schema"),
        ('"zeros": 0', '"zeros": 1', "adds up to"),
        ('"images": 1', '"images": 0', "images"),
        ('"0": "3"', '"0": "three"', "whole numbers"),
        ('"0": "3"', '"0": "-3"', "least -3"),
        ('"0": "3"', '"200": "3"', "'200'"),
        ('"0": "3"', f'"0": "{"1 " * 129}3"', "130 bins"),
        ('"0": "3"', '"0": "99999999999999999999999"', "whole numbers"),
        ('"count": 3', '"counts": 3', "counts"),
        ("{", "", "not a calibration table"),
    ],
)
def test_a_damaged_table_is_refused_in_one_sentence(old: str, new: str, message: str) -> None:
    text = encode_table(tiny(np.ones(3, np.float32))).decode()
    assert old in text
    with pytest.raises(RequestError, match=message):
        decode_table(text.replace(old, new, 1).encode())


def test_bytes_that_are_no_text_and_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a calibration table"):
        decode_table(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="cannot be read"):
        read_table(tmp_path / "missing.json")
    path = tmp_path / "calibration.json"
    path.write_bytes(b"{}")
    with pytest.raises(RequestError, match=str(path)):
        read_table(path)


def test_a_tensor_that_the_table_lacks_is_refused_by_name(table: CalibrationTable) -> None:
    with pytest.raises(RequestError, match="'elsewhere'"):
        table.range("elsewhere")


def test_no_image_and_images_that_are_not_finite_are_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(DatasetError, match="no image"):
        calibrate(model, [], threads=1)
    bad = images(2)
    bad[1, 0, 0, 0] = np.nan
    with pytest.raises(DatasetError, match="NaN"):
        calibrate(model, [bad], threads=1)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_image_that_does_not_fit_ends_the_run_instead_of_stalling_it(
    model: onnx.ModelProto, threads: int
) -> None:
    with pytest.raises(ExportError, match="cannot run the graph"):
        calibrate(model, [images(9)[:, :, :8, :8]], threads=threads)


def test_an_activation_that_overflows_is_refused_with_its_name(model: onnx.ModelProto) -> None:
    weight = np.full((8, 8, 3, 3), 1e30, np.float32)
    huge = with_weight(with_weight(model, "a.conv1.weight", weight), "a.conv2.weight", weight)
    with pytest.raises(RequestError, match=r"tensor 'a\.conv2\.out'.*infinite or NaN"):
        calibrate(huge, [images(1)], threads=1)


def test_a_single_image_is_enough_for_a_table(model: onnx.ModelProto) -> None:
    assert calibrate(model, [images(1)], threads=2).images == 1


def test_the_progress_counts_images(model: onnx.ModelProto) -> None:
    seen: list[tuple[str, int | None, int]] = []

    def progress(items, description, total=None):  # type: ignore[no-untyped-def]
        items = list(items)
        seen.append((description, total, len(items)))
        return iter(items)

    calibrate(model, [images(4), images(3)], total=7, threads=1, progress=progress)
    assert seen == [("Calibrating", 7, 7)]


def test_a_graphs_hash_is_of_what_it_computes(model: onnx.ModelProto) -> None:
    copy = onnx.load_from_string(model.SerializeToString())
    copy.graph.node[0].doc_string = "somewhere/else.py:3"
    copy.graph.node[0].name = "renamed"
    copy.producer_version = "9"
    onnx.helper.set_model_props(copy, {"made": "today"})
    for tensor in copy.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values.ravel()))
    assert graph_hash(copy) == graph_hash(model)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight.flat[0] = np.nextafter(weight.flat[0], np.float32(1))
    assert graph_hash(with_weight(model, model.graph.initializer[0].name, weight)) != graph_hash(model)
    strided = onnx.load_from_string(model.SerializeToString())
    strided.graph.node[0].attribute[0].ints[0] = 5
    assert graph_hash(strided) != graph_hash(model)


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=8), st.data())
def test_the_hash_of_images_knows_no_order_and_adds_up(pixels: list[int], data: st.DataObject) -> None:
    batch = np.array(pixels, np.uint8).reshape(-1, 1, 1, 1)
    order = data.draw(st.permutations(range(len(pixels))))
    cut = data.draw(st.integers(0, len(pixels)))
    shuffled = batch[list(order)]
    assert image_hash(shuffled) == image_hash(batch)
    assert add_hashes(image_hash(shuffled[:cut]), image_hash(shuffled[cut:])) == image_hash(batch)
    assert image_hash(np.concatenate([batch, batch[:1]])) != image_hash(batch)
