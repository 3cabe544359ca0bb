"""A Ray cluster that somebody started: connected to, found to run the same versions, and given work in shards."""

from __future__ import annotations

import logging
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

from resnet_export.runtime.errors import BackendError, DependencyError, RequestError, ResnetExportError

__all__ = ["Cluster", "connected"]

# What figures depend on.
_PACKAGES = ("resnet-export", "numpy", "onnx", "onnxruntime", "openvino")
_CONNECTING = 60  # seconds for each node to say what it has
_KNOCKING = 10
_RETRIES = 10  # of a shard whose worker was lost

Item = TypeVar("Item")
R = TypeVar("R")


@dataclass(frozen=True)
class Cluster:
    """A connected cluster; made by `connected`."""

    ray: Any
    address: str
    cpus: int

    def share(self, value: Any) -> Any:
        """Return a reference that every shard may take, so that the value travels once to each node."""
        return self.ray.put(value)

    def map(self, function: Callable[[Any, Item], R], shared: Any, items: Iterable[Item]) -> Iterator[R]:
        """Yield `function(shared, item)` for each item, in order, run on the cluster one processor each.

        At most two items for each processor are under way. An item whose worker or node is lost runs again elsewhere.
        Raises what `function` raises, and BackendError where an item is lost again and again.
        """
        ray = self.ray
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(function)
        waiting: deque[Any] = deque()

        def result() -> R:
            try:
                found: R = ray.get(waiting.popleft())
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ResnetExportError):
                    raise error.cause from error
                raise BackendError(
                    f"a worker of the Ray cluster {self.address} failed ({_line(error.cause)})"
                ) from error
            except ray.exceptions.RayError as error:
                raise BackendError(
                    f"the Ray cluster {self.address} lost its workers ({_line(error)}); see `ray status`"
                ) from error
            return found

        for item in items:
            waiting.append(remote.remote(shared, item))
            if len(waiting) > 2 * self.cpus:
                yield result()
        while waiting:
            yield result()


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Connect to the cluster at `address`: HOST:PORT, or "auto" for the one of this host.

    Raises RequestError: nothing answers there, or a node has another Python, Ray or version of a package that figures
    depend on. DependencyError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise DependencyError("ray is not installed; run: pip install 'resnet-export[ray]'") from error
    if ray.is_initialized():
        yield _checked(ray, address)
        return
    _knock(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except Exception as error:  # of sockets, gRPC and Ray, which have no common root
        reason = _line(error)
        if "ersion mismatch" in reason:
            raise RequestError(f"the Ray cluster {address} runs other versions ({reason})") from error
        raise RequestError(
            f"no Ray cluster answers at {address} ({reason}); start one with: ray start --head"
        ) from error
    try:
        yield _checked(ray, address)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise RequestError at once where nobody listens; Ray itself tries again for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCKING).close()
    except (OSError, ValueError, OverflowError) as error:
        raise RequestError(
            f"no Ray cluster answers at {address} ({_line(error)}); give HOST:PORT of one, or start it with: ray start "
            "--head"
        ) from error


def _checked(ray: Any, address: str) -> Cluster:
    """Return the cluster, whose every node has what this process has. Raises RequestError."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mine = _facts()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    probe = ray.remote(num_cpus=0, max_retries=0)(_ask)
    asked = {
        node["NodeManagerAddress"]: probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    }
    for node, answer in asked.items():
        try:
            theirs = ray.get(answer, timeout=_CONNECTING)
        except ray.exceptions.RayTaskError as error:
            raise RequestError(
                f"the node {node} of the Ray cluster {address} cannot run resnet-export ({_line(error.cause)}); "
                "install this version there"
            ) from error
        except ray.exceptions.RayError as error:
            raise RequestError(
                f"the node {node} of the Ray cluster {address} does not answer ({_line(error)}); see `ray status`"
            ) from error
        for name, version in mine.items():
            if theirs.get(name) != version:
                raise RequestError(
                    f"the node {node} of the Ray cluster {address} has {name} {theirs.get(name) or 'not installed'}, "
                    f"and this host {version or 'does not'}; install the same there"
                )
    cpus = int(sum(node["Resources"]["CPU"] for node in nodes))
    if not cpus:
        raise RequestError(
            f"the Ray cluster {address} has no processor; add a node with: ray start --address"
        )
    return Cluster(ray, address, cpus)


def _facts() -> dict[str, str | None]:
    """Return the versions of Python and of what figures depend on, None for what is not installed."""
    found: dict[str, str | None] = {"Python": ".".join(map(str, sys.version_info[:2]))}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _ask() -> dict[str, str | None]:
    """Return the facts of the worker that this runs in."""
    return _facts()


def _line(error: BaseException | None) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
