"""What the process does in which a bundle of a stranger is tried; `trial` starts it."""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec
import numpy as np

from resnet_export.runtime.bundle.manifest import encode_manifest
from resnet_export.runtime.errors import ResnetExportError
from resnet_export.runtime.select.spec import SessionSpec
from resnet_export.runtime.session import open_session
from resnet_export.runtime.trial import Told


def main() -> None:
    """Open and run the bundle that the command line names, as standard input asks, and say how it went."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native code may print
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=SessionSpec)
    options: dict[str, Any] = {name: getattr(request, name) for name in request.__struct_fields__}
    try:
        with open_session(sys.argv[1], **options) as session:
            spec = session.manifest.input
            shape: Any = (1, *spec.shape[1:])
            session.run(np.zeros(shape, spec.dtype))
            told = Told(manifest=encode_manifest(session.manifest))
    except ResnetExportError as error:
        told = Told(error=type(error).__name__, text=str(error))
    answer.write(msgspec.json.encode(told))
    answer.flush()
