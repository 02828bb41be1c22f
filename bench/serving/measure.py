"""Rounds over all cells in shuffled order: whatever the machine does hits every server alike."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.serving import load, process, workload
from bench.serving.cells import Server
from bench.serving.prepare import PARAMS, ROOT

WARM_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One cell, measured once. `wrong` says why it does not count."""

    round: int
    server: str
    setting: str
    model: str
    connections: int
    per_second: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    cpu_us: float = 0.0  # processor time of the server for each request
    load_1m: float = 0.0  # of the machine, before: others at work spoil a figure
    wrong: str = ""


class Running:
    """A server that runs, paused unless it is being measured."""

    def __init__(self, server: Server, work: workload.Workload, folder: Path) -> None:
        self.server, self._work = server, work
        port = process.free_port()
        name = f"{server.name}-{server.model}-{server.connections[0]}".replace(" ", "-")
        self._url = f"http://127.0.0.1:{port}{server.path}"
        self._bodies = work.write(folder / f"{name}.jsonl", server.dialect)
        env = {
            "BENCH_PARAMS": str(PARAMS),
            **{k: v.format(port=port) for k, v in server.env.items()},
        }
        command = [part.replace("{port}", str(port)) for part in server.command]
        self._processes = process.Processes(command, env, server.cwd, folder / f"{name}.log")
        self._first = work.body(0, server.dialect)

    def wait(self) -> None:
        """Wait for the first answer, and hold all of them against the model's."""
        process.wait_until(
            lambda: workload.answers_at_all(self._url, self.server.dialect, *self._first),
            self._processes,
            300,  # two processes that prove MiniLM one after the other, on two cores
        )
        self._work.check(self._url, self.server.dialect)
        self._processes.pause()

    def measure(self, connections: int, seconds: float) -> dict[str, Any]:
        self._processes.resume()
        try:
            self._work.check(self._url, self.server.dialect)
            self._load(connections, WARM_SECONDS)
            before = self._processes.cpu_seconds()
            sent = self._load(connections, seconds)
            cpu = self._processes.cpu_seconds() - before
            self._work.check(self._url, self.server.dialect)
        except (workload.WrongAnswer, load.LoadError) as error:
            return {"wrong": str(error)}
        finally:
            self._processes.pause()
        wrong = "" if sent.clean else f"{sent.refused} refused, {sent.broken} without an answer"
        return {
            "per_second": sent.per_second,
            "p50_us": sent.p50_us,
            "p99_us": sent.p99_us,
            "cpu_us": cpu / max(sent.requests, 1) * 1e6,
            "wrong": wrong,
        }

    @contextlib.contextmanager
    def under_load(self, connections: int, seconds: float) -> Iterator[int]:
        """Return the id of its first process while it is asked."""
        self._processes.resume()
        try:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                loading = pool.submit(self._load, connections, seconds)
                yield self._processes.pid
                loading.result()
        finally:
            self._processes.pause()

    def _load(self, connections: int, seconds: float) -> load.Load:
        if self.server.dialect not in workload.GRPC:
            return load.send(self._url, self._bodies, connections, seconds)
        each = workload.STREAM if self.server.dialect == "stream" else 1
        return load.call(self._url, self._bodies, connections, seconds, each)

    def idle(self, seconds: float) -> float:
        """Return the share of one core that it uses without requests, in percent."""
        self._processes.resume()
        try:
            time.sleep(1.0)  # what follows a pause is not idleness
            before = self._processes.cpu_seconds()
            time.sleep(seconds)
            return 100 * (self._processes.cpu_seconds() - before) / seconds
        finally:
            self._processes.pause()

    def stop(self) -> None:
        self._processes.stop()


class RunningBare:
    """The bare programs in a process of their own, which sleeps unless it is asked."""

    def __init__(self, server: Server, work: workload.Workload, folder: Path) -> None:
        self.server = server
        bodies = work.write(folder / f"bare-{server.model}.jsonl", "vertex")
        command = [part.replace("{bodies}", str(bodies)) for part in server.command]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def wait(self) -> None:
        if self._read() != "ready\n":
            raise process.ServerFailed("the bare programs did not run")

    def measure(self, connections: int, seconds: float) -> dict[str, Any]:  # noqa: ARG002
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def _read(self) -> str:
        return self._process.stdout.readline()

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def start(
    servers: Sequence[Server], works: Mapping[str, workload.Workload], folder: Path
) -> list[Running | RunningBare]:
    """Start all servers, one after the other.

    Raises:
      ServerFailed, WrongAnswer: one of them cannot be measured; none is left running.
    """
    running: list[Running | RunningBare] = []
    try:
        for server in servers:
            kind = Running if any(server.connections) else RunningBare
            running.append(kind(server, works[server.model], folder))
            running[-1].wait()
            print(f"ready: {server.model}, {server.name} ({server.setting})", flush=True)
    except BaseException:
        stop(running)
        raise
    return running


def stop(running: Sequence[Running | RunningBare]) -> None:
    for one in running:
        one.stop()


def measure(
    running: Sequence[Running | RunningBare],
    rounds: int,
    seconds: float,
    on_row: Callable[[Row], None],
) -> list[Row]:
    """Measure every cell once a round, each round in another order.

    Cells that are compared follow each other: a machine that others use too keeps its speed for
    seconds, not for a round.
    """
    rows = []
    order = random.Random(0)  # noqa: S311 (a shuffle)
    cells = [(one, n) for one in running for n in one.server.connections]
    for number in range(rounds):
        order.shuffle(cells)
        for one, connections in together(cells):
            server, before = one.server, os.getloadavg()[0]
            rows.append(
                Row(
                    number,
                    server.name,
                    server.setting,
                    server.model,
                    connections,
                    load_1m=before,
                    **one.measure(connections, seconds),
                )
            )
            on_row(rows[-1])
    return rows


def together(cells: Sequence[tuple[Any, int]]) -> list[tuple[Any, int]]:
    """Bring the cells of one model and one number of connections together, in their order.

    What has no connections, the bare programs, goes with the largest number of them.
    """
    largest = max(n for _, n in cells)
    groups: dict[tuple[str, int], list[tuple[Any, int]]] = {}
    for one, n in cells:
        groups.setdefault((one.server.model, n or largest), []).append((one, n))
    return [cell for group in groups.values() for cell in group]
