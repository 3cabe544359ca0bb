"""A build that can be watched and cancelled: TensorRT pushes its progress, `Progress` pulls it."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from resnet_export.runtime.progress import Progress

STEPS = 100


class Tree:
    """Where a build stands, from nested phases of known length.

    A phase fills the step of its parent in which it starts, so the fraction done is a walk down the open
    phases.
    """

    def __init__(self) -> None:
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # name → parent, steps, steps done
        self._best = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._phases[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, index: int) -> None:
        if name in self._phases:
            parent, steps, _ = self._phases[name]
            self._phases[name] = (parent, steps, min(index + 1, steps))

    def finish(self, name: str) -> None:
        self._phases.pop(name, None)

    def fraction(self) -> float:
        """The part of the build that is done, in [0, 1]. It never falls: a phase may run more than once."""
        self._best = max(self._best, *(self._reached(name) for name in self._phases), 0.0)
        return self._best

    def _reached(self, name: str) -> float:
        parent, steps, done = self._phases[name]
        fraction = done / steps
        while parent is not None and parent in self._phases:
            parent, steps, done = self._phases[parent]
            fraction = min((done + fraction) / steps, 1.0)
        return fraction


@functools.cache
def _monitor_class(library: Any) -> Any:
    class Monitor(library.IProgressMonitor):  # type: ignore[misc, name-defined, unused-ignore]
        """Puts the percentage reached into `events`; cancels the build once `cancelled` is set."""

        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.events: queue.SimpleQueue[int | None] = queue.SimpleQueue()
            self.cancelled = threading.Event()
            self._tree = Tree()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._tree.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tree.step(phase_name, step)
            self.events.put(int(self._tree.fraction() * STEPS))
            return not self.cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._tree.finish(phase_name)

    return Monitor


def watched_build(
    library: Any, config: Any, build: Callable[[], Any], progress: Progress, description: str
) -> Any:
    """Call `build` in a thread of its own, show how far it is, and return what it returns.

    The caller's thread only waits, so that Ctrl-C reaches it at once; it then cancels the build, waits for
    TensorRT to let go, and passes the KeyboardInterrupt on. An exception of `build` is raised here.
    """
    monitor = _monitor_class(library)()
    config.progress_monitor = monitor
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(build())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)
        finally:
            monitor.events.put(None)

    def steps() -> Iterator[int]:
        shown = 0
        while (reached := monitor.events.get()) is not None:
            yield from range(shown, reached)
            shown = max(shown, reached)
        if outcome and outcome[0] is not None:
            yield from range(shown, STEPS)

    worker = threading.Thread(target=run, name="tensorrt-build")
    worker.start()
    try:
        for _ in progress(steps(), description, STEPS):
            pass
    finally:
        monitor.cancelled.set()  # without effect on a build that is done
        worker.join()
    if failure:
        raise failure[0]
    return outcome[0]
