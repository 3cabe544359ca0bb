"""Asking a server: the networks of a bundle for the parity gate, and an ensemble for labels.

Over HTTP and gRPC, in the words of the Open Inference Protocol (KServe v2), through tritonclient. A server is believed
only when its configuration names the bundle's hash (`bundle_sha256`), which is Triton's extension of the protocol.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from resnet_export.exporter.triton.config import BUNDLE_SHA256
from resnet_export.exporter.triton.repository import bundle_hash
from resnet_export.exporter.triton.shared_region import SharedRegion
from resnet_export.runtime.bundle.manifest import LOGITS, Artifact, Manifest, read_manifest
from resnet_export.runtime.errors import (
    BackendError,
    DependencyError,
    ImageError,
    RequestError,
    ResnetExportError,
    SessionClosedError,
)
from resnet_export.runtime.parity.plan import Run
from resnet_export.runtime.prediction import Prediction
from resnet_export.runtime.select.choice import Choice

__all__ = ["Ensemble", "ServedBy", "ServedSession", "open_ensemble", "served_runs"]

_URL = re.compile(
    r"(?:(?P<scheme>https?|grpcs?)://)?(?P<host>\[[0-9a-f:]+\]|[^/:\s]+):(?P<port>[0-9]{1,5})"
    r"(?:/(?:v2/models/)?(?P<model>[^/\s]+))?/?"
)
_LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
_DTYPES = {"float32": "FP32", "uint8": "UINT8"}
_ENSEMBLE_OUTPUTS = frozenset({"label", "probability", "index"})
_CLIENTS = 8  # requests under way at once, which the server batches

T = TypeVar("T")


@dataclass(frozen=True)
class _Url:
    """Where a server is: the protocol, host:port, and the model that was named, None for any."""

    protocol: Literal["http", "grpc"]
    address: str
    secure: bool
    model: str | None

    @classmethod
    def parse(cls, url: str) -> _Url:
        """Raises RequestError."""
        found = _URL.fullmatch(url.strip())
        if found is None:
            raise RequestError(
                f"{url!r} is no address of a server; give http://HOST:PORT/MODEL or grpc://HOST:PORT/MODEL"
            )
        scheme = found["scheme"] or "http"
        return cls(
            "grpc" if scheme.startswith("grpc") else "http",
            f"{found['host']}:{found['port']}",
            scheme in ("https", "grpcs"),
            found["model"],
        )

    @property
    def is_local(self) -> bool:
        return self.address.rpartition(":")[0] in _LOCAL

    def __str__(self) -> str:
        return f"{self.protocol}{'s' if self.secure else ''}://{self.address}"


class _Server:
    """One server, over either protocol. What goes wrong is a RequestError until a model was found, a BackendError then.

    Belongs to the thread that made it, as HTTP connections do.
    """

    def __init__(self, url: _Url) -> None:
        self.url = url
        self._module = _module(url.protocol)
        options: dict[str, Any] = {"ssl": True} if url.secure else {}
        if url.protocol == "http":
            options["concurrency"] = _CLIENTS
        self.connection: Any = self._module.InferenceServerClient(url.address, **options)
        # gRPC may be used by several threads; HTTP has requests under way in one.
        self._pool = ThreadPoolExecutor(_CLIENTS, "resnet-export-infer") if url.protocol == "grpc" else None

    def close(self) -> None:
        """End the connections. Twice is harmless."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        # Dropped here as well: an HTTP connection ends in the thread that it belongs to.
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(Exception):  # it may be broken; nothing waits for it
                connection.close()

    def ask(self, call: Callable[[Any], T], kind: type[ResnetExportError] = RequestError) -> T:
        """Return `call(connection)`; raises `kind` with the server's reason."""
        try:
            return call(self.connection)
        except Exception as error:  # sockets, gevent, gRPC and tritonclient have no common root
            raise kind(
                f"the server {self.url} does not answer ({_reason(error)}); see that it runs there"
            ) from error

    def version(self) -> str:
        """Return what the server calls itself: "triton 2.50.0"."""
        found = self._plain(self.ask(lambda connection: connection.get_server_metadata()))
        return f"{found.get('name', 'server')} {found.get('version', '')}".strip()

    def names(self) -> list[str]:
        """Return the models that are ready."""
        index = self._plain(self.ask(lambda connection: connection.get_model_repository_index()))
        models = index.get("models", []) if isinstance(index, dict) else index
        return sorted({one["name"] for one in models if one.get("state") == "READY"})

    def model(self, name: str) -> _Model:
        """Return what the server says of a model. Raises RequestError where there is none of that name."""
        try:
            metadata = self._plain(self.connection.get_model_metadata(name))
            found = self._plain(self.connection.get_model_config(name))
        except Exception as error:
            self.version()  # whether it answers at all
            names = ", ".join(self.names()) or "none"
            raise RequestError(
                f"the server {self.url} has no model {name!r} ({_reason(error)}); it has {names}"
            ) from error
        config = found.get("config", found)
        parameters = {
            key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()
        }
        version = max(metadata.get("versions", []), key=int, default="")
        return _Model(
            name=name,
            version=version,
            bundle=parameters.get(f"{BUNDLE_SHA256}.{version}"),
            artifact=parameters.get("artifact"),
            inputs={one["name"]: (one["datatype"], _shape(one)) for one in metadata.get("inputs", [])},
            outputs={one["name"]: (one["datatype"], _shape(one)) for one in metadata.get("outputs", [])},
            max_batch=int(config.get("max_batch_size", 0)) or 1,
        )

    def send(
        self, model: _Model, inputs: dict[str, NDArray[Any]], outputs: Iterable[str]
    ) -> Callable[[], Any]:
        """Send a request, and return what waits for its answer; tritonclient's exceptions pass."""
        arguments: dict[str, Any] = {
            "model_name": model.name,
            "inputs": [self.tensor(name, model.inputs[name][0], value) for name, value in inputs.items()],
            "model_version": model.version,
            "outputs": [self.output(name) for name in outputs],
        }
        if self._pool is not None:
            return self._pool.submit(self.connection.infer, **arguments).result
        get_result: Callable[[], Any] = self.connection.async_infer(**arguments).get_result
        return get_result

    def tensor(self, name: str, dtype: str, value: NDArray[Any]) -> Any:
        tensor = self._module.InferInput(name, [*value.shape], dtype)
        tensor.set_data_from_numpy(value)
        return tensor

    def shared_tensor(self, name: str, dtype: str, value: NDArray[Any], region: SharedRegion) -> Any:
        tensor = self._module.InferInput(name, [*value.shape], dtype)
        tensor.set_shared_memory(region.name, value.nbytes)
        return tensor

    def output(self, name: str) -> Any:
        return self._module.InferRequestedOutput(name)

    def _plain(self, answer: Any) -> Any:
        """Return an answer as JSON has it, whichever protocol brought it."""
        if isinstance(answer, dict | list):
            return answer
        from google.protobuf import json_format

        return json_format.MessageToDict(answer, preserving_proto_field_name=True)


@dataclass(frozen=True)
class _Model:
    """A model of a server. `bundle` is the hash of the bundle that its newest version serves."""

    name: str
    version: str
    bundle: str | None
    artifact: str | None
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]
    max_batch: int


class ServedBy(msgspec.Struct, frozen=True, kw_only=True):
    """What answers: a model of a server, and the bundle it serves, by the SHA-256 of its manifest."""

    server: str
    model: str
    version: str
    bundle_sha256: str | None

    def __str__(self) -> str:
        bundle = "an unnamed bundle" if self.bundle_sha256 is None else f"bundle {self.bundle_sha256[:12]}"
        return f"{self.model} version {self.version} on {self.server}, {bundle}"


class ServedSession:
    """The network of a bundle on a server, in place of a session. For one thread at a time.

    Batches over the server's limit go in pieces. Where the server is on this host, images lie in memory that both
    share; where it cannot see that memory (in a container), they are sent.
    """

    def __init__(self, server: _Server, model: _Model, manifest: Manifest) -> None:
        self.manifest = manifest
        self._server = server
        self._model = model
        self._region: SharedRegion | None = None
        self._closed = False
        self._notes: tuple[str, ...] = (
            f"answered by {server.url}, model {model.name} version {model.version}",
        )
        spec = manifest.input
        if server.url.is_local:
            self._share(spec.dtype, model.max_batch * int(np.prod(manifest.preprocessing.crop_shape)))
        zeros = np.zeros((1, *(int(side) for side in spec.shape[1:])), spec.dtype)
        self._choice = self._ask(zeros, (LOGITS,))[1]

    @property
    def choice(self) -> Choice:
        """What the server runs: what its session says, or what its configuration does."""
        return msgspec.structs.replace(self._choice, notes=(*self._choice.notes, *self._notes))

    def run(self, batch: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits of a batch, float32 [N, classes]. Raises BackendError."""
        return self.run_outputs(batch, (LOGITS,))[LOGITS]

    def run_outputs(
        self, batch: NDArray[np.float32] | NDArray[np.uint8], names: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the outputs of these names of a batch, float32 [N, …] each. Raises BackendError."""
        size = self._model.max_batch
        parts = [self._ask(batch[start : start + size], names)[0] for start in range(0, len(batch), size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def close(self) -> None:
        """End the connections. Twice is harmless."""
        self._closed = True
        if self._region is not None:
            with suppress(Exception):  # the server may be gone
                self._server.connection.unregister_system_shared_memory(self._region.name)
            self._region.close()
            self._region = None
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, images: NDArray[Any], names: Sequence[str]
    ) -> tuple[dict[str, NDArray[np.float32]], Choice]:
        if self._closed:
            raise SessionClosedError("the session of the server is closed; check again")
        name, images = self.manifest.input.name, np.ascontiguousarray(images)
        outputs = [*names, *(["ran"] if "ran" in self._model.outputs else [])]
        dtype = self._model.inputs[name][0]
        if self._region is None:
            tensor = self._server.tensor(name, dtype, images)
        else:
            self._region.write(images)
            tensor = self._server.shared_tensor(name, dtype, images, self._region)
        answer = self._server.ask(
            lambda connection: connection.infer(
                self._model.name,
                [tensor],
                model_version=self._model.version,
                outputs=[self._server.output(one) for one in outputs],
            ),
            BackendError,
        )
        found = {one: np.array(answer.as_numpy(one), np.float32) for one in names}
        if "ran" not in outputs:
            return found, self._configured()
        return found, msgspec.json.decode(answer.as_numpy("ran").ravel()[0], type=Choice)

    def _configured(self) -> Choice:
        artifact = _artifact(self._model, self.manifest)
        return Choice(
            artifact=artifact.name,
            backend="triton",
            provider=self._model.name,
            device="server",
            precision=artifact.precision,
        )

    def _share(self, dtype: str, values: int) -> None:
        try:
            region = SharedRegion(values * np.dtype(dtype).itemsize)
        except OSError as error:
            self._notes += (f"no memory could be shared with it ({error})",)
            return
        try:
            self._server.connection.register_system_shared_memory(region.name, region.key, region.size)
        except Exception as error:  # noqa: BLE001 — in a container it sees other memory; some know no such request
            region.close()
            self._notes += (f"it takes no shared memory ({_reason(error)})",)
            return
        self._region = region


def served_runs(
    bundle: str | os.PathLike[str], url: str, *, artifacts: tuple[str, ...] | None = None
) -> tuple[Run, ...]:
    """Return a run for each model of the server at `url` that serves this very bundle's network.

    Raises RequestError: the server does not answer, has no such model, or serves another bundle.
    """
    where = _Url.parse(url)
    server = _Server(where)
    manifest, expected = read_manifest(bundle), bundle_hash(bundle)
    try:
        version = server.version()
        names = server.names() if where.model is None else [where.model]
        models = [server.model(name) for name in names]
    finally:
        server.close()
    networks = [model for model in models if _is_network(model, manifest)]
    if not networks:
        takes = f"{manifest.input.name!r} {list(manifest.input.shape)}"
        raise RequestError(
            f"no model of the server {where} takes {takes} and returns {manifest.outputs[0].name!r} "
            f"(it has {', '.join(names) or 'none'}); write one with: resnet-export triton {os.fspath(bundle)} --out DIR"
        )
    same = [model for model in networks if model.bundle == expected]
    if not same:
        found = ", ".join(
            f"{model.name} of {f'bundle {model.bundle[:12]}' if model.bundle else 'a bundle that it does not name'}"
            for model in networks
        )
        raise RequestError(
            f"the server {where} serves {found}, and not {os.fspath(bundle)} ({expected[:12]}); give the bundle "
            "that is served, or serve this one with: resnet-export triton"
        )
    runs = tuple(_run(where, model, manifest, version) for model in same)
    runs = tuple(run for run in runs if artifacts is None or run.artifact.name in artifacts)
    if not runs:
        raise RequestError(
            f"the server {where} runs none of the artifacts {', '.join(artifacts or ())}; leave --artifact out"
        )
    return runs


def _run(where: _Url, model: _Model, manifest: Manifest, version: str) -> Run:
    with ServedSession(_Server(where), model, manifest) as session:
        choice = session.choice
    return Run(
        artifact=manifest.artifact(choice.artifact),
        backend="triton",
        provider=model.name,
        precision=choice.precision,
        device="gpu" if choice.device.startswith("gpu") else "cpu",
        open=partial(_open_session, where, model, manifest),
        version=version,
    )


def _open_session(where: _Url, model: _Model, manifest: Manifest) -> ServedSession:
    return ServedSession(_Server(where), model, manifest)


def _is_network(model: _Model, manifest: Manifest) -> bool:
    spec = manifest.input
    dtype, shape = model.inputs.get(spec.name, ("", ()))
    return (
        dtype == _DTYPES[spec.dtype]
        and shape[1:] == spec.shape[1:]
        and manifest.outputs[0].name in model.outputs
    )


def _artifact(model: _Model, manifest: Manifest) -> Artifact:
    if model.artifact is None:
        raise RequestError(f"the model {model.name} does not say which artifact it runs; write it again")
    return manifest.artifact(model.artifact)


@dataclass
class Ensemble:
    """A server's model from the bytes of image files to labels, in place of a session."""

    server: _Server
    model: _Model
    choice: ServedBy
    top: int = field(init=False)

    def __post_init__(self) -> None:
        self.top = self.model.outputs["label"][1][-1]

    def stream(
        self, images: Iterable[Any], top: int = 5, *, on_error: Literal["raise", "return"] = "raise"
    ) -> Iterator[list[Prediction] | ResnetExportError]:
        """Yield the labels of each image, in order. See `Session.stream`.

        Raises RequestError where the server returns fewer labels than `top`, BackendError where it stops answering.
        """
        if top > self.top:
            raise RequestError(
                f"the model {self.model.name} returns {self.top} labels, {top} were asked for; give --top "
                f"{self.top}, or write the repository with more"
            )
        waiting: deque[Callable[[], list[Prediction] | ImageError]] = deque()

        def next_result() -> list[Prediction] | ResnetExportError:
            found = waiting.popleft()()
            if isinstance(found, ImageError) and on_error == "raise":
                raise found
            return found

        for image in images:
            waiting.append(self._classify(image, top))
            if len(waiting) >= _CLIENTS:
                yield next_result()
        while waiting:
            yield next_result()

    def close(self) -> None:
        """End the connections. Twice is harmless."""
        self.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _classify(self, image: Any, top: int) -> Callable[[], list[Prediction] | ImageError]:
        """Send one image, and return what waits for its labels."""
        name = repr(os.fspath(image)) if isinstance(image, str | os.PathLike) else "the image"
        try:
            data = Path(image).read_bytes() if isinstance(image, str | os.PathLike) else bytes(image)
        except OSError as error:
            failed = ImageError(f"{name} cannot be read ({error.strerror})")
            return lambda: failed
        inputs = {"image": np.array([[data]], np.object_)}
        wait = self.server.send(self.model, inputs, sorted(_ENSEMBLE_OUTPUTS))

        def labels() -> list[Prediction] | ImageError:
            try:
                answer = wait()
            except Exception as error:  # sockets, gevent, gRPC and tritonclient have no common root
                said = re.search(r"\bimage 0 (.*)", _reason(error))
                if said is not None:
                    return ImageError(f"{name} {said[1]}")
                raise BackendError(f"the server {self.server.url} failed ({_reason(error)})") from error
            rows = zip(*(answer.as_numpy(one)[0] for one in ("index", "label", "probability")), strict=True)
            return [
                Prediction(index=int(index), label=label.decode(), probability=float(probability))
                for index, label, probability in list(rows)[:top]
            ]

        return labels


def open_ensemble(url: str) -> Ensemble:
    """Return the ensemble at `url`: the model that it names, or the only one from image files to labels.

    Raises RequestError: the server does not answer, or has no such model, or several.
    """
    server = _Server(_Url.parse(url))
    try:
        model = _find_ensemble(server)
    except BaseException:
        server.close()
        raise
    served = ServedBy(
        server=str(server.url), model=model.name, version=model.version, bundle_sha256=model.bundle
    )
    return Ensemble(server, model, served)


def _find_ensemble(server: _Server) -> _Model:
    where = server.url
    names = server.names() if where.model is None else [where.model]
    found = [model for model in map(server.model, names) if model.outputs.keys() >= _ENSEMBLE_OUTPUTS]
    found = [model for model in found if model.inputs.get("image", ("",))[0] == "BYTES"]
    if len(found) == 1:
        return found[0]
    if found:
        what = f"has several models from image files to labels ({', '.join(model.name for model in found)})"
    else:
        what = f"has no model from image files to labels (it has {', '.join(names) or 'none'})"
    raise RequestError(f"the server {where} {what}; name one as {where}/MODEL")


def _module(protocol: str) -> Any:
    try:
        if protocol == "grpc":
            import tritonclient.grpc as module
        else:
            import tritonclient.http as module
    except ImportError as error:
        raise DependencyError(
            f"tritonclient is not installed ({error.name} is missing); run: pip install 'resnet-export[triton]'"
        ) from error
    return module


def _shape(tensor: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(side) for side in tensor["shape"])


def _reason(error: BaseException) -> str:
    message = getattr(error, "message", None)
    text = message() if callable(message) else str(error)
    return " ".join(str(text).split()).rstrip(".")[:300] or type(error).__name__
