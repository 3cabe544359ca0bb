"""A bundle as a Ray Serve deployment: autoscaled replicas, each with a session of its own, batched by Ray.

serve run resnet_export.exporter.ray.serve:app bundle=/models/resnet50 max_replicas=8
curl --data-binary @cat.jpg http://localhost:8000/
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from resnet_export.runtime import Prediction, ResnetExportError, open_session
from resnet_export.runtime.errors import RequestError

__all__ = ["Classifier", "app", "deploy"]


class Classifier:
    """A replica. Requests carry the bytes of one image file; answers are JSON, as `infer --json` has it."""

    def __init__(self, bundle: str, top: int, options: dict[str, Any]) -> None:
        self._top = top
        self._session = open_session(bundle, **options)
        self._session.warmup()

    async def classify(self, files: list[bytes]) -> list[list[Prediction] | ResnetExportError]:
        """Return the labels of image files, or for each the error that concerns it alone."""
        return await asyncio.to_thread(self._session.classify, files, self._top, on_error="return")

    async def __call__(self, request: Any) -> Any:
        """Answer an HTTP request: 200 with labels, 400 for what is no image."""
        from starlette.responses import Response

        found = await self.classify(await request.body())  # one each: Ray collects them
        failed = isinstance(found, ResnetExportError)
        answer: Any = {"error": str(found)} if failed else {"predictions": found}
        return Response(msgspec.json.encode(answer), 400 if failed else 200, media_type="application/json")

    def choice(self) -> str:
        """Return what runs, in words."""
        return str(self._session.choice)


def deploy(
    bundle: str,
    *,
    top: int = 5,
    min_replicas: int = 1,
    max_replicas: int = 4,
    max_batch: int | None = None,
    max_wait: float = 0.002,
    cpus: float = 1,
    gpus: float = 0,
    **options: Any,
) -> Any:
    """Return the application that serves the bundle in the folder `bundle`, which every node can read.

    Args:
        top: labels per image.
        min_replicas, max_replicas: between which Ray scales, with two batches of requests for each replica.
        max_batch: the largest batch that Ray collects; None for the bundle's `batch.opt`.
        max_wait: seconds that a request waits for others.
        cpus, gpus: of each replica; `threads` of its session is `cpus`, unless `options` say otherwise.
        options: arguments of `open_session`.
    """
    from ray import serve

    from resnet_export.runtime import read_manifest

    size = max_batch or read_manifest(bundle).batch.opt
    options = {"threads": max(1, int(cpus)), **options}
    batched = serve.batch(max_batch_size=size, batch_wait_timeout_s=max_wait)(Classifier.classify)
    replica = type("Classifier", (Classifier,), {"classify": batched, "__doc__": Classifier.__doc__})
    deployed: Any = serve.deployment(
        name="classifier",
        max_ongoing_requests=4 * size,
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": 2 * size,
        },
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )(replica)
    return deployed.bind(bundle, top, options)


def app(arguments: dict[str, str]) -> Any:
    """Build the application for `serve run`, from words. Raises RequestError."""
    if "bundle" not in arguments:
        raise RequestError("no bundle was given; write bundle=/path/of/the/bundle behind the application")
    kinds: dict[str, Any] = {
        "top": int,
        "min_replicas": int,
        "max_replicas": int,
        "max_batch": int,
        "max_wait": float,
        "cpus": float,
        "gpus": float,
        "threads": int,
    }
    try:
        given = {name: kinds.get(name, str)(value) for name, value in arguments.items()}
    except ValueError as error:
        raise RequestError(f"an argument of the application is no number ({error})") from error
    return deploy(**given)
