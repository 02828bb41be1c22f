"""The classifier behind mosec: a front in Rust, a worker in Python.

mosec reads --port and --timeout itself. BENCH_BATCH is the maximum rows of a batch (1: no batcher),
BENCH_WAIT_MS how long its batcher waits for them, BENCH_WORKERS the number of worker processes.
"""

import os

import orjson
from mosec import Server, Worker

from bench.serving.servers.classifier import Classifier

BATCH = int(os.environ["BENCH_BATCH"])


class Classify(Worker):
    """One request is one instance, so a batch of requests is a batch of rows."""

    def __init__(self) -> None:
        super().__init__()
        self._classifier = Classifier()

    def deserialize(self, data: bytes) -> list[int]:
        (instance,) = orjson.loads(data)["instances"]
        return instance

    def forward(self, data):
        if BATCH == 1:
            return self._classifier.classify([data])[0]
        return self._classifier.classify(data)

    def serialize(self, data: dict) -> bytes:
        return orjson.dumps({"predictions": [data]})


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Classify,
        num=int(os.environ.get("BENCH_WORKERS", "1")),
        max_batch_size=BATCH,
        max_wait_time=int(os.environ.get("BENCH_WAIT_MS", "1")),
        route="/predict",
    )
    server.run()
