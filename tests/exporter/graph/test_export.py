"""The exported graph: what it computes, what its nodes are called, and what follows a failing exporter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.exporter.graph import stage_check
from resnet_export.exporter.graph.export import simplify, to_onnx
from resnet_export.exporter.graph.exported_graph import ExportedGraph, serialize
from resnet_export.exporter.graph.stage_check import Reference, check_stage
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import DependencyError, ExportError
from resnet_export.runtime.parity.measure.metrics import relative_error
from tests.exported import BATCH, CLASSES, SIZE, exported_resnet18


def initializer(graph: ExportedGraph, name: str) -> np.ndarray[Any, Any]:
    return next(numpy_helper.to_array(one) for one in graph.model.graph.initializer if one.name == name)


def export_again(**changes: Any) -> ExportedGraph:
    one = exported_resnet18()
    arguments = {"batch": BATCH, "reference": one.reference} | changes
    return to_onnx(one.network, **arguments)[0]


def replace_dynamo(monkeypatch: pytest.MonkeyPatch, instead: Callable[[], Any]) -> None:
    """Let `instead` stand in for the dynamo exporter, and leave the TorchScript exporter alone."""
    real = torch.onnx.export

    def export(*args: Any, **kwargs: Any) -> Any:
        return instead() if kwargs.get("dynamo") else real(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", export)


class TestTheExportedGraph:
    def test_computes_what_the_network_computes_at_every_batch_size(self) -> None:
        one = exported_resnet18()
        session = CpuSession(serialize(one.graph.model))
        for size in (1, 2, 3, 4, 7):
            found = session.run(one.reference.images[:size])[0]
            assert relative_error(found, one.reference.logits[:size]) < 1e-5

    def test_has_the_promised_input_output_and_versions(self) -> None:
        model = exported_resnet18().graph.model
        (source,), (target,) = model.graph.input, model.graph.output
        shape = [dim.dim_param or dim.dim_value for dim in source.type.tensor_type.shape.dim]
        assert (source.name, shape) == ("input", ["N", 3, SIZE, SIZE])
        shape = [dim.dim_param or dim.dim_value for dim in target.type.tensor_type.shape.dim]
        assert (target.name, shape) == ("logits", ["N", CLASSES])
        assert [(one.domain, one.version) for one in model.opset_import] == [("", 19)]
        assert model.ir_version == 9

    def test_comes_from_the_dynamo_exporter_without_a_notice(self) -> None:
        graph = exported_resnet18().graph
        assert (graph.exporter, graph.notices) == ("dynamo", ())

    def test_says_nothing_on_the_terminal(self, capfd: pytest.CaptureFixture[str]) -> None:
        simplify(export_again())
        assert capfd.readouterr() == ("", "")

    def test_refuses_a_network_in_training_mode(self) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 3))
        with pytest.raises(ExportError, match="training mode"):
            to_onnx(network, batch=BATCH, reference=exported_resnet18().reference)


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def named(request: pytest.FixtureRequest) -> ExportedGraph:
    """The simplified graph from either exporter."""
    if request.param == "dynamo":
        return exported_resnet18().graph
    with pytest.MonkeyPatch.context() as patch:
        replace_dynamo(patch, lambda: None)
        return simplify(export_again())


class TestTheModuleMap:
    def test_covers_every_node_once(self, named: ExportedGraph) -> None:
        names = [node.name for node in named.model.graph.node]
        assert len(set(names)) == len(names)
        assert set(named.modules) == set(names)

    def test_names_modules_of_the_network(self, named: ExportedGraph) -> None:
        known = {path for path, _ in exported_resnet18().network.named_modules()}
        assert set(named.modules.values()) <= known

    def test_gives_each_convolution_the_weights_of_its_own_module(self, named: ExportedGraph) -> None:
        network = exported_resnet18().network
        convolutions = {node.name: node for node in named.model.graph.node if node.op_type == "Conv"}
        expected = {path for path, module in network.named_modules() if isinstance(module, nn.Conv2d)}
        assert {named.modules[name] for name in convolutions} == expected == set(convolutions)
        for path in expected:
            norm = network.get_submodule(path.replace("conv", "bn").replace("downsample.0", "downsample.1"))
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_var is not None
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            weight = network.get_parameter(f"{path}.weight") * gain.reshape(-1, 1, 1, 1)
            np.testing.assert_allclose(
                initializer(named, f"{path}.weight"), weight.detach().numpy(), rtol=1e-5, atol=1e-7
            )

    def test_follows_the_wiring_of_a_block(self, named: ExportedGraph) -> None:
        nodes = {node.name: node for node in named.model.graph.node}
        assert list(nodes["layer2.0.add"].input) == ["layer2.0.conv2.output", "layer2.0.downsample.0.output"]
        assert list(nodes["layer2.0.relu_1"].input) == ["layer2.0.add.output"]
        assert list(nodes["layer2.1.conv1"].input[:1]) == ["layer2.0.relu_1.output"]
        paths = [
            named.modules[name] for name in ("layer2.0.add", "layer2.0.relu_1", "avgpool", "fc", "maxpool")
        ]
        assert paths == ["layer2.0", "layer2.0.relu", "avgpool", "fc", "maxpool"]

    def test_leaves_no_initializer_to_two_nodes(self, named: ExportedGraph) -> None:
        stored = [tensor.name for tensor in named.model.graph.initializer]
        read = [name for node in named.model.graph.node for name in node.input if name in set(stored)]
        assert sorted(stored) == sorted(read)


class TestFallingBack:
    def test_happens_when_the_dynamo_exporter_cannot_trace_the_network(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        class Branching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3, padding=1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv(x)
                if x.abs().sum() >= 0:  # depends on data, which torch.export refuses and tracing forgets
                    x = torch.relu(x)
                return x.mean((2, 3))

        network = Branching().eval()
        images = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
        reference = stage_check.record_reference(network, images)
        graph, check = to_onnx(network, batch=BATCH, reference=reference)
        assert graph.exporter == "torchscript"
        (notice,) = graph.notices
        assert "dynamo exporter was rejected" in notice
        assert "Could not guard on data-dependent expression" in notice
        assert "\n" not in notice
        assert "\x1b" not in notice
        assert check.worst < 1e-5
        assert simplify(graph).notices == graph.notices
        assert capfd.readouterr() == ("", "")

    def test_happens_when_the_dynamo_result_differs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Program:
            model_proto = onnx.ModelProto()

        Program.model_proto.CopyFrom(exported_resnet18().graph.model)
        weight = next(one for one in Program.model_proto.graph.initializer if one.name == "fc.weight")
        weight.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name)
        )
        replace_dynamo(monkeypatch, Program)
        graph = export_again()  # checked, or it would have raised
        assert graph.exporter == "torchscript"
        assert "differs from the eager network at batch 1: relative error 0.0" in graph.notices[0]

    def test_ends_in_an_error_when_both_exporters_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def export(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("out of luck")

        monkeypatch.setattr(torch.onnx, "export", export)
        with pytest.raises(ExportError, match="TorchScript exporter failed: RuntimeError: out of luck"):
            export_again()


class TestSimplifying:
    def test_leaves_a_finished_graph_byte_for_byte_alone(self) -> None:
        graph = exported_resnet18().graph
        assert serialize(simplify(graph).model) == serialize(graph.model)

    def test_folds_a_batch_norm_and_drops_a_no_op_and_keeps_the_map(self) -> None:
        rng = np.random.default_rng(0)
        arrays = {"conv.weight": rng.normal(size=(4, 3, 3, 3))}
        arrays |= {f"bn.{name}": rng.uniform(0.5, 2, 4) for name in ("weight", "bias", "mean", "var")}
        nodes = [
            helper.make_node("Conv", ["input", "conv.weight"], ["conv.output"], "conv"),
            helper.make_node(
                "BatchNormalization",
                ["conv.output", "bn.weight", "bn.bias", "bn.mean", "bn.var"],
                ["bn.output"],
                "bn",
            ),
            helper.make_node("Identity", ["bn.output"], ["identity.output"], "identity"),
            helper.make_node("Relu", ["identity.output"], ["logits"], "relu"),
        ]
        model = helper.make_model(
            helper.make_graph(
                nodes,
                "test",
                [helper.make_tensor_value_info("input", 1, ["N", 3, 8, 8])],
                [helper.make_tensor_value_info("logits", 1, ["N", 4, 6, 6])],
                [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()],
            ),
            opset_imports=[helper.make_opsetid("", 19)],
            ir_version=9,
        )
        before = ExportedGraph(model, {name: name for name in ("conv", "bn", "identity", "relu")}, "dynamo")
        after = simplify(before)
        assert after.modules == {"conv": "conv", "relu": "relu"}
        assert [node.output[0] for node in after.model.graph.node] == ["conv.output", "logits"]
        batch = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
        expected, found = (CpuSession(serialize(one.model)).run(batch)[0] for one in (before, after))
        assert relative_error(found, expected) < 1e-6

    def test_reports_a_graph_that_onnxsim_refuses(self) -> None:
        graph = exported_resnet18().graph
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        model.graph.node[5].input[0] = "nowhere"
        with pytest.raises(ExportError, match="onnxsim cannot simplify"):
            simplify(replace(graph, model=model))


class TestComparingWithEager:
    def fixed_at(self, size: int) -> ExportedGraph:
        """The graph with `size` baked into its Reshape, as exporters have silently done."""
        graph = exported_resnet18().graph
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        for tensor in model.graph.initializer:
            if tensor.name == "reshape.shape":
                tensor.CopyFrom(numpy_helper.from_array(np.array([size, 512]), tensor.name))
        return replace(graph, model=model)

    @pytest.mark.parametrize(("size", "caught"), [(1, 3), (3, 1)])
    def test_catches_a_batch_axis_that_was_silently_fixed(self, size: int, caught: int) -> None:
        with pytest.raises(ExportError, match=rf"\[{caught}, 3, 64, 64\]"):
            check_stage(self.fixed_at(size).model, exported_resnet18().reference, step="broken", batch=BATCH)

    def test_names_the_step_the_batch_and_the_figure(self) -> None:
        one = exported_resnet18()
        off = Reference(one.reference.images, {"logits": one.reference.logits * np.float32(1.001)})
        with pytest.raises(
            ExportError, match=r"step 'test' .* at batch 1: relative error 0\.001, .* 0\.0001"
        ):
            check_stage(one.graph.model, off, step="test", batch=BATCH)

    def test_catches_one_wrong_row_of_the_largest_batch(self) -> None:
        one = exported_resnet18()
        logits = one.reference.logits.copy()
        logits[4] = logits[3]
        with pytest.raises(ExportError, match="at batch 5"):
            check_stage(
                one.graph.model, Reference(one.reference.images, {"logits": logits}), step="test", batch=BATCH
            )

    def test_keeps_the_logits_of_every_image_and_a_figure_for_every_size(self) -> None:
        one = exported_resnet18()
        first, second = one.checks
        assert (first.step, second.step) == ("onnx", "simplify")
        assert set(first.relative) == {1, 3, BATCH.max}
        assert relative_error(first.logits, one.reference.logits) < 1e-5

    def test_repeats_images_where_the_probe_is_smaller_than_the_batch(self) -> None:
        one = exported_resnet18()
        few = Reference(one.reference.images[:2], {"logits": one.reference.logits[:2]})
        found = check_stage(one.graph.model, few, step="test", batch=BATCH)
        assert found.logits.shape == (2, CLASSES)
        assert set(found.relative) == {1, 3, 5}

    def test_does_not_run_the_same_bytes_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = exported_resnet18()

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("a session was opened")

        monkeypatch.setattr(stage_check, "CpuSession", refuse)
        known = one.checks[-1]
        again = check_stage(one.graph.model, one.reference, step="again", batch=BATCH, known=known)
        assert (again.step, again.relative) == ("again", known.relative)
        other = Reference(one.reference.images, {"logits": one.reference.logits})
        for graph, reference, batch in (
            (self.fixed_at(1), one.reference, BATCH),
            (one.graph, other, BATCH),
            (one.graph, one.reference, BatchRange(max=4)),
        ):
            with pytest.raises(AssertionError):
                check_stage(graph.model, reference, step="other", batch=batch, known=known)

    def test_does_not_reuse_figures_that_a_stricter_limit_forbids(self) -> None:
        one = exported_resnet18()
        with pytest.raises(ExportError, match="differs"):
            check_stage(
                one.graph.model, one.reference, step="strict", batch=BATCH, limit=1e-12, known=one.checks[-1]
            )

    def test_needs_onnxruntime_and_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = exported_resnet18()
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(DependencyError, match="onnxruntime is not installed"):
            check_stage(one.graph.model, one.reference, step="test", batch=BATCH)
