"""Every exception that resnet-export raises on purpose.

    ResnetExportError              the base: catch this to catch them all
    ├── RequestError               an option, argument or input file is wrong
    │   ├── ImageError             an image cannot be decoded or is unsafe to decode
    │   ├── CheckpointError        a weights file cannot be loaded, or does not fit the network
    │   │   └── KeyMismatchError   its names or shapes are not the network's; lists every one
    │   └── DatasetError           a data set is empty, unreadable or inconsistent
    ├── BundleError                a bundle cannot be read
    │   ├── SchemaError            its manifest does not follow a schema that this version knows
    │   └── IntegrityError         a file is missing, outside the bundle, or has another hash
    │       └── SignatureError     the bundle is not what the owner of a key signed
    ├── DependencyError            a package that the request needs is not installed
    ├── BackendError               a backend refused an artifact, or failed while running it
    │   └── NoBackendError         nothing on this host runs the bundle as asked; `.trace` says why
    ├── ExportError                a step of the export produced something that fails its own check
    ├── QueueFullError             a queue of requests is full, and its session rejects more
    ├── RequestTimeoutError        a request had no result by its deadline; also a TimeoutError
    └── SessionClosedError         a session was used after `close()`

Each message is one sentence: what was found, what was expected, what to do. The command line prints it
on standard error and exits with status 2. An error from a native library arrives as `__cause__`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resnet_export.runtime.select.choice import Considered

__all__ = [
    "BackendError",
    "BundleError",
    "CheckpointError",
    "DatasetError",
    "DependencyError",
    "ExportError",
    "ImageError",
    "IntegrityError",
    "KeyMismatchError",
    "NoBackendError",
    "QueueFullError",
    "RequestError",
    "RequestTimeoutError",
    "ResnetExportError",
    "SchemaError",
    "SessionClosedError",
    "SignatureError",
]


class ResnetExportError(Exception):
    """The base of everything that this project raises on purpose.

    Attributes:
        index: the position, among the images of one call, of the one that it concerns; None where it concerns all.
        path: the path of that image, where it was given as one.
    """

    index: int | None = None
    path: str | None = None


class RequestError(ResnetExportError):
    """An option, argument or input file is wrong."""


class ImageError(RequestError):
    """An image cannot be decoded, or is unsafe to decode."""


class CheckpointError(RequestError):
    """A weights file cannot be loaded, or does not fit the network."""


class KeyMismatchError(CheckpointError):
    """The names or shapes in a weights file are not those of the network; nothing was loaded.

    Attributes:
        missing: every name that the network needs and the file lacks.
        unexpected: every name in the file that the network does not have.
        mis_shaped: a sentence for every tensor of another shape, such as "fc.bias is [10], expected [1000]".
    """

    def __init__(
        self,
        message: str,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        mis_shaped: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected
        self.mis_shaped = mis_shaped


class DatasetError(RequestError):
    """A data set is empty, unreadable or inconsistent."""


class BundleError(ResnetExportError):
    """A bundle cannot be read."""


class SchemaError(BundleError):
    """The manifest does not follow a schema that this version knows."""


class IntegrityError(BundleError):
    """A file of the bundle is missing, lies outside it, or has another hash than the manifest says."""


class SignatureError(IntegrityError):
    """The bundle has no signature of the key that was given, or is not what was signed."""


class DependencyError(ResnetExportError):
    """A package that the request needs is not installed."""


class BackendError(ResnetExportError):
    """A backend refused an artifact, or failed while running it."""


class NoBackendError(BackendError):
    """Nothing on this host runs the bundle as asked.

    Attributes:
        trace: every (artifact, backend) pair that was considered, with the reason why it was rejected.
    """

    def __init__(self, message: str, trace: tuple[Considered, ...] = ()) -> None:
        super().__init__(message)
        self.trace = trace


class ExportError(ResnetExportError):
    """A step of the export produced something that fails its own check."""


class QueueFullError(ResnetExportError):
    """A queue of requests is full, and its session rejects more: the caller is to come back later."""


class RequestTimeoutError(ResnetExportError, TimeoutError):
    """A request had no result by its deadline."""


class SessionClosedError(ResnetExportError):
    """A session was used after it was closed."""
