"""A bundle's programs behind mosec, with JAX's own cache on disk.

BENCH_BUNDLE is the bundle, BENCH_CACHE the folder of the cache.
"""

import os
from pathlib import Path

from mosec import Server, Worker

from bench.start.programs import open_programs


class Programs(Worker):
    """Answers what the smallest program answered to zeros."""

    def __init__(self) -> None:
        super().__init__()
        self._answer, _ = open_programs(Path(os.environ["BENCH_BUNDLE"]), os.environ["BENCH_CACHE"])

    def forward(self, _data):
        return {"predictions": self._answer}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Programs, num=1, route="/predict")
    server.run()
