"""Throughput of a Triton server with and without dynamic batching, on one bundle.

    python -m benchmarks.triton_load BUNDLE [--clients 32] [--requests 2000]

Needs `make .venv/.scale`. Requests go to the network's python model over gRPC, one image each; the servers take turns,
so that what else runs on the host hits both.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as over_grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from resnet_export.exporter.triton.repository import write_repository
from resnet_export.exporter.triton.spec import TritonSpec
from resnet_export.runtime import read_manifest
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.preprocess import to_input
from tests import triton_server

TURNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        servers = {batched: start(asked.bundle, Path(name), batched=batched) for batched in (True, False)}
        try:
            image = to_input(read_golden(asked.bundle).images[:1], read_manifest(asked.bundle).preprocessing)
            rates: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(TURNS):
                for batched, server in servers.items():
                    rates[batched].append(load(server, image, asked.clients, asked.requests))
        finally:
            for server in servers.values():
                server.kill()
    best = {batched: max(found) for batched, found in rates.items()}
    for batched, found in rates.items():
        words = "with" if batched else "without"
        print(f"{words} dynamic batching: {', '.join(f'{rate:.0f}' for rate in found)} images/s")
    print(f"ratio of the best: {best[True] / best[False]:.2f}")


def start(bundle: Path, folder: Path, *, batched: bool) -> triton_server.Server:
    home = folder / ("batched" if batched else "single")
    write_repository(bundle, home / "models", TritonSpec(name="net"))
    if not batched:
        file = home / "models" / "net_python" / "config.pbtxt"
        config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
        config.ClearField("dynamic_batching")
        file.write_text(text_format.MessageToString(config))
    server = triton_server.Server(home / "models", home)
    server.start()
    return server


def load(server: triton_server.Server, image: np.ndarray, clients: int, requests: int) -> float:
    """Return images per second."""
    left = threading.Semaphore(requests)
    value = over_grpc.InferInput("input", [*image.shape], "UINT8" if image.dtype == np.uint8 else "FP32")
    value.set_data_from_numpy(image)
    logits = [over_grpc.InferRequestedOutput("logits")]

    def client() -> None:
        with over_grpc.InferenceServerClient(server.grpc) as connection:
            while left.acquire(blocking=False):
                connection.infer("net_python", [value], outputs=logits)

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client) for _ in range(clients)]:
            done.result()
    return requests / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
