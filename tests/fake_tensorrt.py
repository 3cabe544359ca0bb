"""Doubles of TensorRT's libraries, autospecced from NVIDIA's real bindings.

`library(version)` has the enumerations of that version with their values; its objects refuse members and
arguments that the real classes do not have. What they compute is made up: the logits of an image are simple
sums of it, so that a test can tell which image went where.
"""

from __future__ import annotations

import ctypes
import json
import struct
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.fake_cuda import FakeCuda
from tests.nvidia_bindings import RTX, Api, api

CLASSES = 5
PLAN_BYTES = 256


def plan(version: tuple[int, int, int, int], *, rtx_mask: int | None = None) -> bytes:
    """The bytes of an engine file with a right header; for RTX when `rtx_mask` is given."""
    tag = b"ftrt" if rtx_mask is None else b"vtrt"
    head = struct.pack("<4sIQQ4B4xQ", tag, 0, 2, PLAN_BYTES, *version, rtx_mask or 0)
    return head.ljust(PLAN_BYTES, b"\x5a")


def logits(images: NDArray[Any]) -> NDArray[np.float32]:
    """What the doubles compute: float32 [N, CLASSES], the mean of each image times 1, 2, ..."""
    means = images.reshape(len(images), -1).astype(np.float32).mean(axis=1)
    return means[:, None] * np.arange(1, CLASSES + 1, dtype=np.float32)


def computed(name: str, images: NDArray[Any]) -> NDArray[np.float32]:
    """What the doubles compute as the output `name`; any but the logits is a vector of one mean an image."""
    values = logits(images)
    return values if name == "logits" else np.ascontiguousarray(values[:, :1])


@dataclass
class Behaviour:
    """What the doubles shall do.

    `outputs` are those of the engine; `refuse` holds the names of methods that return False from now on.
    """

    cuda: FakeCuda
    input_shape: tuple[int, ...] = (-1, 3, 4, 4)
    dtype: str = "FLOAT"
    outputs: tuple[str, ...] = ("logits",)
    profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 8),)
    loads: bool = True
    refuse: set[str] = field(default_factory=set)
    contexts: list[Any] = field(default_factory=list)
    most_contexts: int = 100
    concurrent: list[int] = field(default_factory=list)
    kernels: bytes = b"compiled kernels"
    loaded_kernels: list[bytes] = field(default_factory=list)
    given: list[bytes] = field(default_factory=list)
    nodes: tuple[str, ...] = ()
    invalid: tuple[str, ...] | None = ()


class FakeLibrary:
    """A module like `tensorrt` or `tensorrt_rtx`."""

    def __init__(self, version: str, behavior: Behaviour) -> None:
        self.api: Api = api(version)
        self.is_rtx = version == RTX
        self.behavior = behavior
        self.__version__ = self.api.version

    def __getattr__(self, name: str) -> Any:
        if not self.api.has(name):
            raise AttributeError(f"TensorRT {self.__version__} has no {name}")
        if self.api.classes[name]["enumerators"]:
            return self.api.enumeration(name)
        raise AssertionError(f"the double of TensorRT has no {name} yet")

    class ILogger:
        """The base of every logger."""

        def __init__(self) -> None:
            pass

    def Runtime(self, logger: Any) -> Any:
        self.logger = logger
        runtime = self.api.double("Runtime")
        runtime.deserialize_cuda_engine.side_effect = self._deserialize
        if self.is_rtx:
            runtime.engine_header_size = 64
            runtime.get_engine_validity.side_effect = self._validity
        self.runtime = runtime
        return runtime

    def say(self, severity: str, text: str) -> None:
        """Log a message as the library would."""
        self.logger.log(type("Severity", (), {"name": severity}), text)

    def _validity(self, header: bytes) -> tuple[Any, int]:
        assert len(header) == self.runtime.engine_header_size
        how = self.behavior.invalid  # None: it cannot tell
        flags = self.EngineInvalidityDiagnostics
        validity = self.EngineValidity.VALID if how == () else self.EngineValidity.INVALID
        return validity, sum(int(flags[name]) for name in how or ())

    def _deserialize(self, data: bytes) -> Any:
        self.behavior.given.append(bytes(data))
        self.behavior.cuda.journal.append("deserialize")
        if not self.behavior.loads:
            self.say(
                "ERROR", "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag mismatch)"
            )
            return None
        return self.engine()

    def engine(self) -> Any:
        """An ICudaEngine with one input."""
        how = self.behavior
        engine = self.api.double("ICudaEngine")
        modes, types = self.TensorIOMode, self.DataType
        engine.num_io_tensors = 1 + len(how.outputs)
        engine.num_optimization_profiles = len(how.profiles)
        engine.get_tensor_name.side_effect = ("input", *how.outputs).__getitem__
        engine.get_tensor_mode.side_effect = (
            dict.fromkeys(how.outputs, modes.OUTPUT) | {"input": modes.INPUT}
        ).__getitem__
        engine.get_tensor_dtype.side_effect = (
            dict.fromkeys(how.outputs, types.FLOAT) | {"input": types[how.dtype]}
        ).__getitem__
        engine.get_tensor_shape.side_effect = (
            {name: (-1, CLASSES if name == "logits" else 1) for name in how.outputs}
            | {"input": how.input_shape}
        ).__getitem__
        engine.get_tensor_profile_shape.side_effect = lambda _, index: [
            (batch, *how.input_shape[1:]) for batch in how.profiles[index]
        ]
        engine.create_execution_context.side_effect = self._context
        if self.is_rtx:
            engine.create_runtime_config.side_effect = self._runtime_config
        inspector = self.api.double("EngineInspector")
        inspector.get_engine_information.side_effect = lambda format: inspector_text(how.nodes)
        engine.create_engine_inspector.side_effect = lambda: inspector
        return engine

    def _runtime_config(self) -> Any:
        config = self.api.double("IRuntimeConfig")
        cache = self.api.double("IRuntimeCache")
        cache.deserialize.side_effect = lambda data: (
            bool(self.behavior.loaded_kernels.append(bytes(data))) or True
        )
        cache.serialize.side_effect = lambda: self.behavior.kernels
        config.create_runtime_cache.side_effect = lambda: cache
        config.set_runtime_cache.side_effect = lambda found: found is cache
        self.config = config
        return config

    def _context(self, *arguments: Any) -> Any:
        how = self.behavior
        assert len(arguments) == (1 if self.is_rtx else 0)
        if len(how.contexts) >= how.most_contexts:
            return None
        context = self.api.double("IExecutionContext")
        state: dict[str, Any] = {"profile": 0, "addresses": {}}
        running = threading.Lock()

        def answer(method: str) -> bool:
            how.cuda.journal.append(method)
            return method not in how.refuse

        def set_profile(profile_index: int, stream_handle: int) -> bool:
            assert stream_handle in how.cuda.streams
            state["profile"] = profile_index
            return answer("set_optimization_profile_async")

        def set_shape(name: str, shape: tuple[int, ...]) -> bool:
            least, _, most = how.profiles[state["profile"]]
            assert name == "input"
            assert least <= shape[0] <= most
            state["shape"] = shape
            return answer("set_input_shape")

        def set_address(name: str, memory: int) -> bool:
            state["addresses"][name] = memory
            return answer("set_tensor_address")

        def execute(stream_handle: int) -> bool:
            assert stream_handle in how.cuda.streams
            assert running.acquire(blocking=False), "two threads run one context"
            try:
                how.concurrent.append(threading.get_ident())
                shape, addresses = state["shape"], dict(state["addresses"])
                how.cuda.submit(stream_handle, lambda: self._compute(shape, addresses))
                if "execute_async_v3" in how.refuse:
                    self.say(
                        "ERROR",
                        "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal access)",
                    )
                return answer("execute_async_v3")
            finally:
                running.release()

        context.set_optimization_profile_async.side_effect = set_profile
        context.set_input_shape.side_effect = set_shape
        context.set_tensor_address.side_effect = set_address
        context.execute_async_v3.side_effect = execute
        how.contexts.append(context)
        return context

    def _compute(self, shape: tuple[int, ...], addresses: dict[str, int]) -> None:
        dtype = np.dtype(np.float32 if self.behavior.dtype == "FLOAT" else np.uint8)
        size = int(np.prod(shape)) * dtype.itemsize
        images = np.frombuffer(ctypes.string_at(addresses["input"], size), dtype).reshape(shape)
        assert addresses.keys() == {"input", *self.behavior.outputs}, "an engine writes every output it has"
        for name in self.behavior.outputs:
            result = computed(name, images).tobytes()
            ctypes.memmove(addresses[name], result, len(result))

    # The builder's side.

    def Builder(self, logger: Any) -> Any:
        self.logger = logger
        builder = self.api.double("Builder")
        self.built = builder
        self.network = self.api.double("INetworkDefinition")
        self.network.num_inputs = 1
        tensor = self.api.double("ITensor")
        tensor.name, tensor.shape = "input", self.behavior.input_shape
        self.network.get_input.side_effect = lambda index: tensor
        self.builder_config = self.api.double("IBuilderConfig")
        self.builder_config.set_timing_cache.side_effect = lambda cache, ignore_mismatch: cache is not None
        self.builder_config.create_timing_cache.side_effect = self._timing_cache
        self.builder_config.add_optimization_profile.side_effect = lambda profile: 0
        builder.num_DLA_cores = 2
        builder.create_network.side_effect = lambda flags: self.network
        builder.create_builder_config.side_effect = lambda: self.builder_config
        builder.create_optimization_profile.side_effect = lambda: self.api.double("IOptimizationProfile")
        builder.build_serialized_network.side_effect = self._build
        return builder

    def _timing_cache(self, data: bytes) -> Any:
        cache = self.api.double("ITimingCache")
        cache.serialize.side_effect = lambda: bytes(data) + b"+"
        self.builder_config.get_timing_cache.side_effect = lambda: cache
        return cache

    def _build(self, network: Any, config: Any) -> bytes:
        assert network is self.network
        assert config is self.builder_config
        numbers = [int(part) for part in self.__version__.split(".")]
        return plan((*numbers, 0, 0)[:4])  # type: ignore[arg-type]

    class IProgressMonitor:
        """The base of every progress monitor."""

        def __init__(self) -> None:
            pass

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        parser = self.api.double("OnnxParser")
        parser.parse.side_effect = lambda model: True
        return parser


def inspector_text(nodes: tuple[str, ...]) -> str:
    """What an engine inspector says of one int8 convolution per node, in the layout that NVIDIA documents."""
    layers = [
        {
            "Name": f"{node} + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Dimensions": [1, 3, 4, 4], "Format/Datatype": "Row major Int8 format"}],
            "Outputs": [
                {"Name": "y", "Dimensions": [1, 3, 4, 4], "Format/Datatype": "Row major Int8 format"}
            ],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Int8", "Count": 27},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
            "Metadata": f"[ONNX Layer: {node}]\x1f[ONNX Layer: relu]",
        }
        for node in nodes
    ]
    return json.dumps({"Layers": layers, "Bindings": ["input", "logits"]})
