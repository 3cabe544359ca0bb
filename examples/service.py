"""An HTTP service: concurrent requests share batches, and a bundle that is replaced is served without a restart.

pip install 'resnet-export[cpu]' fastapi uvicorn
BUNDLE=resnet50 uvicorn --app-dir examples service:app
curl --data-binary @cat.jpg 'localhost:8000/classify?top=3'
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from fastapi import FastAPI, HTTPException, Request

from resnet_export.runtime import (
    BatchingSpec,
    ImageError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    open_session,
)

MAX_BYTES = 20_000_000
SECONDS = 5.0


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold one session for all requests. A full queue rejects at once: a client that waits is no use to anybody."""
    batching = BatchingSpec(queue_size=256, when_full="reject")
    with open_session(os.environ["BUNDLE"], prefer="throughput", batching=batching) as session:
        session.warmup()
        session.watch(interval=1.0)
        app.state.session = session
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
async def classify(request: Request, top: int = 5) -> list[dict[str, object]]:
    """Return the most probable labels of the image file in the body."""
    image = bytearray()
    async for chunk in request.stream():
        image += chunk
        if len(image) > MAX_BYTES:
            raise HTTPException(413, f"the image has more than {MAX_BYTES} bytes")
    try:
        predictions = await app.state.session.aclassify(image, top, timeout=SECONDS)
    except ImageError as error:
        raise HTTPException(415, str(error)) from error
    except RequestError as error:
        raise HTTPException(422, str(error)) from error
    except QueueFullError as error:
        raise HTTPException(503, str(error), headers={"Retry-After": "1"}) from error
    except RequestTimeoutError as error:
        raise HTTPException(504, str(error)) from error
    found: list[dict[str, object]] = msgspec.to_builtins(predictions)
    return found


@app.get("/health")
async def health() -> dict[str, object]:
    """Say what is served, on what, and how many classes it tells apart."""
    session = app.state.session
    return {
        "model": session.manifest.model.arch,
        "choice": str(session.choice),
        "classes": len(session.labels),
        "exported": session.manifest.provenance.created,
    }
