"""Images through the server: decoding and resizing against the library alone, and bytes on the wire.

    python -m bench.raw_images [--seconds 5] [--connections 16] [--json] [--save]

Prints how many images a second the stage makes, in as many threads as there are cores, beside the same
calls of Pillow in a bare loop; and requests a second of one JPEG of about 60 kB in three forms: as a
file, as the same pixels in b64, and as JSON numbers.
"""

import argparse
import base64
import concurrent.futures
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from PIL import Image as Pillow

from bench import results
from export import Image, export_model
from runtime import load
from runtime.preprocessing.resources import UNLIMITED

SIZE = 224
WIDTH, HEIGHT = 640, 430
JPEG_BYTES = 60_000


def photograph() -> bytes:
    """Return a JPEG of about 60 kB, with soft shapes and as much noise as that takes."""
    rng = np.random.default_rng(0)
    coarse = Pillow.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize((WIDTH, HEIGHT), Pillow.Resampling.BICUBIC)).astype(np.int16)
    noisy = np.clip(soft + rng.integers(-14, 15, soft.shape), 0, 255).astype(np.uint8)
    for quality in range(60, 96):
        buffer = io.BytesIO()
        Pillow.fromarray(noisy).save(buffer, "JPEG", quality=quality)
        if buffer.tell() >= JPEG_BYTES:
            break
    return buffer.getvalue()


def bundle(out: Path) -> None:
    """Export a model that costs next to nothing: the mean of each channel."""
    export_model(
        lambda _, image: image.mean(axis=(1, 2)),
        {},
        inputs=[f"image:float32[_,{SIZE},{SIZE},3]"],
        buckets=(1, 8, 16, 32),
        platforms="cpu",
        preprocess=[Image("image", SIZE)],
        out=out,
    )


def by_hand(data: bytes) -> np.ndarray:
    """Make pixels as the stage does, by Pillow alone."""
    with Pillow.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.load()
        bands = [
            np.asarray(
                image.getchannel(i).convert("F").resize((SIZE, SIZE), Pillow.Resampling.BILINEAR)
            )
            for i in range(3)
        ]
    return np.rint(np.stack(bands, axis=-1)).astype(np.uint8)


def rate(call: Callable[[], object], seconds: float, threads: int) -> float:
    """Return calls a second in some threads."""
    end = time.perf_counter() + seconds

    def loop() -> int:
        count = 0
        while time.perf_counter() < end:
            call()
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: loop(), range(threads))) / seconds


def decoding(path: Path, data: bytes, seconds: float) -> dict[str, float]:
    """Return images a second of the stage and of the library, measured in turns."""
    model = load(path)
    [reader] = model.preparer.readers
    stage = lambda: reader.read({"image": [data]}, lambda *_: "", UNLIMITED)  # noqa: E731
    np.testing.assert_array_equal(stage()[0].array, by_hand(data))
    threads = len(os.sched_getaffinity(0))
    found: dict[str, list[float]] = {"stage": [], "library": []}
    for _ in range(4):
        found["library"].append(rate(lambda: by_hand(data), seconds / 8, threads))
        found["stage"].append(rate(stage, seconds / 8, threads))
    best = {name: max(rates) for name, rates in found.items()}
    return {
        "threads": threads,
        "stage_images_per_s": best["stage"],
        "library_images_per_s": best["library"],
        "ratio": float(np.median(np.divide(found["stage"], found["library"]))),
    }


def bodies(data: bytes) -> dict[str, bytes]:
    """Return one request in each form."""
    pixels = by_hand(data)
    file = {"b64": base64.b64encode(data).decode()}
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [1, *pixels.shape],
        "parameters": {"binary_data_size": pixels.nbytes},
    }
    head = orjson.dumps({"inputs": [tensor]})
    return {
        "file in JSON": orjson.dumps({"instances": [file]}),
        "pixels in binary": head + pixels.tobytes(),
        "pixels in JSON": orjson.dumps({"instances": [pixels.tolist()]}),
    }


def requests(port: int, body: bytes, seconds: float, connections: int) -> float:
    """Return requests a second, from a process's worth of threads that keep their connections."""
    import http.client

    binary = body.find(b"}]}") + 3 if body.startswith(b'{"inputs"') else None
    headers = {"content-type": "application/json"}
    if binary is not None:
        headers = {
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(binary),
        }
    local = threading.local()

    def ask() -> None:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        local.connection.request("POST", "/predict", body, headers)
        answer = local.connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(text.decode())

    ask()
    return rate(ask, seconds, connections)


def serving(
    path: Path, data: bytes, seconds: float, connections: int
) -> dict[str, dict[str, float]]:
    """Return bytes and requests a second of each form, through a server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "server", "--bundle", str(path), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--grpc-port", "-1", "--drain-delay-s", "0"]
    command += ["--processes", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_until_ready(port)
            return {
                name: {
                    "bytes": len(body),
                    "requests_per_s": requests(port, body, seconds, connections),
                }
                for name, body in bodies(data).items()
            }
        finally:
            server.terminate()


def wait_until_ready(port: int) -> None:
    """Ask until the server is ready."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    sys.exit("error: the server did not become ready")


def save(
    data: bytes, decoded: Mapping[str, Any], served: Mapping[str, Mapping[str, float]]
) -> None:
    """Save the figures, and their chart; see `bench.results`."""
    made = {
        "the stage": decoded["stage_images_per_s"],
        "Pillow alone": decoded["library_images_per_s"],
    }
    asked = {f"{n}, {of['bytes'] / 1e3:,.0f} kB": of["requests_per_s"] for n, of in served.items()}
    title = f"A JPEG of {len(data) / 1e3:,.0f} kB, decoded and resized to {SIZE}x{SIZE}"
    panels = {"images a second, on all cores": made, "requests a second": asked}
    figures = {"title": title, "unit": "a second", "panels": panels}
    results.save("images", {**figures, "decoding": decoded, "serving": served})


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print the figures for machines")
    parser.add_argument(
        "--save", action="store_true", help="write docs/results/images-DATE-pythonVERSION.*"
    )
    arguments = parser.parse_args()
    data = photograph()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        bundle(path)
        decoded = decoding(path, data, arguments.seconds)
        served = serving(path, data, arguments.seconds, arguments.connections)
    if arguments.save:
        save(data, decoded, served)
    if arguments.json:
        print(json.dumps({"jpeg_bytes": len(data), "decoding": decoded, "serving": served}))
        return 0
    print(f"a JPEG of {len(data):,} B, {WIDTH}x{HEIGHT}, to {SIZE}x{SIZE}")
    print(
        f"decoded and resized in {decoded['threads']} threads: {decoded['stage_images_per_s']:,.0f} "
        f"images/s, the library alone {decoded['library_images_per_s']:,.0f}, {decoded['ratio']:.2f} x"
    )
    for name, figures in served.items():
        print(f"{name}: {figures['bytes']:,.0f} B, {figures['requests_per_s']:,.0f} requests/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
