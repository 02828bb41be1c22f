"""The classifier behind LitServe: FastAPI, and a worker process with a batcher.

Takes the port as its only argument. BENCH_BATCH is the maximum rows of a batch (1: no batcher),
BENCH_WAIT_MS how long its batcher waits for them, BENCH_FRONTS the number of API processes.
"""

import os
import sys

import litserve

from bench.serving.servers.classifier import Classifier

BATCH = int(os.environ["BENCH_BATCH"])


class Classify(litserve.LitAPI):
    """One request is one instance."""

    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe's signature)
        self._classifier = Classifier()

    def decode_request(self, request: dict) -> list[int]:
        (instance,) = request["instances"]
        return instance

    def batch(self, inputs: list) -> list:
        return inputs  # its default is an array; ours is made when the rows are padded

    def unbatch(self, output: list) -> list:
        return output

    def predict(self, x):
        if BATCH == 1:
            return self._classifier.classify([x])[0]
        return self._classifier.classify(x)

    def encode_response(self, output: dict) -> dict:
        return {"predictions": [output]}


if __name__ == "__main__":
    api = Classify(
        max_batch_size=BATCH,
        batch_timeout=float(os.environ.get("BENCH_WAIT_MS", "1")) / 1000,
        api_path="/predict",
    )
    litserve.LitServer(api, accelerator="cpu", devices=1, fast_queue=True).run(
        port=int(sys.argv[1]),
        num_api_servers=int(os.environ.get("BENCH_FRONTS", "1")),
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
