"""The model that a session serves: which calls use it, when another takes its place, and when it is freed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType

from resnet_export.runtime.errors import SessionClosedError
from resnet_export.runtime.loaded_model import LoadedModel

__all__ = ["ServedModel"]

_CLOSED = "the session is closed; open another with open_session()"


class ServedModel:
    """Hands the current model to each call, and frees a model once no call uses it any more.

        with served.use() as model:
            model.run(batch)

    It belongs to the process that made it: in a fork every use is refused, and nothing is freed.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._current = model
        self._users: dict[LoadedModel, int] = {}
        self._closed = False
        self._process = os.getpid()
        # Reentrant, because garbage may be collected, and a session be closed, in a thread that holds it.
        self._changed = threading.Condition(threading.RLock())

    @property
    def current(self) -> LoadedModel:
        """The model that the next call gets; the last one after `close`."""
        return self._current

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def is_forked(self) -> bool:
        """Tell whether this process is a fork of the one that loaded the model."""
        return os.getpid() != self._process

    def check_open(self) -> None:
        """Raise SessionClosedError when the session is closed, or this process is a fork."""
        self._check_process()
        if self._closed:
            raise SessionClosedError(_CLOSED)

    def use(self) -> _Use:
        """Return a context in which the model stays loaded. Raises SessionClosedError when it is entered too late."""
        return _Use(self)

    def replace(self, model: LoadedModel) -> None:
        """Give `model` to every later call, and free the one before when its calls have ended.

        Raises SessionClosedError when there is nothing to replace any more; `model` is freed then.
        """
        try:
            self._check_process()
            with self._changed:
                if self._closed:
                    raise SessionClosedError(_CLOSED)
                before, self._current = self._current, model
        except SessionClosedError:
            model.close()
            raise
        if before.batcher.is_worker():  # in a callback: the calls before it may wait for this thread
            _start_thread(partial(self._free, before))
        else:
            self._free(before)

    def close(self, *, drain: bool = True) -> None:
        """Let no call in, complete what was submitted (or cancel it), and free the model when its calls have ended.

        The second time does nothing but wait, and in a fork nothing at all.
        """
        if self.is_forked():
            return
        with self._changed:
            self._closed = True
        # A submission that waits for room in the queue is refused: it counts as a call.
        self._current.batcher.retire(cancel=not drain)
        self._free(self._current)

    def close_later(self) -> None:
        """Close in another thread where there are requests to complete: this one may be the batcher's."""
        if self._current.batcher.started and not self.is_forked():
            _start_thread(self.close)
        else:
            self.close()

    def _free(self, model: LoadedModel) -> None:
        with self._changed:
            self._changed.wait_for(lambda: model not in self._users)
        model.close()

    def _check_process(self) -> None:
        # A fork copies locks as they happen to be, and neither the threads of an engine nor its GPU, so a call would
        # wait for ever; nothing of the session may be touched there.
        if self.is_forked():
            raise SessionClosedError(
                f"the session was opened in process {self._process} and this is a fork of it, which has none of its "
                "threads; call open_session() in each worker process"
            )

    def _enter(self) -> LoadedModel:
        self._check_process()
        with self._changed:
            if self._closed:
                raise SessionClosedError(_CLOSED)
            model = self._current
            self._users[model] = self._users.get(model, 0) + 1
            return model

    def _leave(self, model: LoadedModel) -> None:
        with self._changed:
            left = self._users[model] - 1
            if left:
                self._users[model] = left
            else:
                del self._users[model]
                self._changed.notify_all()


def _start_thread(target: Callable[[], None]) -> None:
    threading.Thread(target=target, name="resnet-export-closing", daemon=True).start()


class _Use:
    """One call's hold on the model."""

    __slots__ = ("_model", "_served")

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def __enter__(self) -> LoadedModel:
        self._model = self._served._enter()
        return self._model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._served._leave(self._model)
