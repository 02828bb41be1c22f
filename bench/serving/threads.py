"""How many processes, and how many threads of XLA in each: what to set on this machine.

    python -m bench.serving.threads [--rounds N] [--seconds S] [--save]

The servers take turns as in `python -m bench.serving`. NPROC is what XLA's CPU client takes the
size of its thread pool from; without it, it takes the number of cores.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from bench.machine import heading
from bench.serving import measure, prepare, report, workload
from bench.serving.__main__ import print_row, save
from bench.serving.cells import Server

CONNECTIONS = (1, 16, 64)


def servers(cores: int) -> list[Server]:
    """Return every setting that makes sense: one process, two, and one a core."""
    found = []
    for model in ("text_classifier", "minilm"):
        for processes in sorted({1, 2, cores}):
            for threads in sorted({cores, max(1, cores // processes), 1}, reverse=True):
                setting = f"{processes} × {threads}"
                first = (processes, threads) == (1, cores)
                bundle = str(prepare.BUNDLES[model])
                command = (prepare.PYTHON, "-m", "server", "--bundle", bundle)
                found.append(
                    Server(
                        name="hloserve" if first else setting,
                        setting=f"processes × threads of each: {setting}",
                        model=model,
                        connections=CONNECTIONS,
                        command=(*command, "--processes", str(processes)),
                        env={
                            "AIP_HTTP_PORT": "{port}",
                            "HLOSERVE_GRPC_PORT": "-1",
                            "NPROC": str(threads),
                        },
                    )
                )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving.threads", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a cell")
    parser.add_argument(
        "--save", action="store_true", help="write docs/results/threads-DATE-pythonVERSION.*"
    )
    arguments = parser.parse_args()
    print(heading(), flush=True)
    prepare.bundles()
    works = {
        "text_classifier": workload.texts(prepare.params()),
        "minilm": workload.sentences(prepare.BUNDLES["minilm"]),
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running = measure.start(servers(os.cpu_count() or 1), works, Path(folder))
        stack.callback(measure.stop, running)
        rows = measure.measure(running, arguments.rounds, arguments.seconds, print_row)
    summary = report.summarize(rows)
    print(f"\n{report.table(summary)}\n")
    if arguments.save:
        save("threads", rows, summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
