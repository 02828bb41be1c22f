"""Soak a server: good and bad traffic for a while, then nothing of it may be left.

    python -m bench.soak [--seconds N] [--leak] [BUNDLE …]

Traffic is sent over HTTP (every dialect, gzip, chunks; cut, reset, refused) and over gRPC (calls and
streams; refused and cancelled). Every answer is compared with the bundle's goldens. A baseline is taken
after a third of the time; at the end memory, file descriptors, threads and arrays on the
device have to be back there. Then the same is done to a server that leaks on purpose
(--leak: this alone), which has to fail in each of these.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.machine import heading
from bench.soak import over_grpc, over_http
from bench.soak.answers import Answers
from bench.soak.process import LABELS, NAMES, Figures, Server, ServerFailed, beyond, running
from bench.soak.tally import Tally
from runtime.description import columns

CONTROL_S = 60.0
GOOD_CLIENTS, BAD_CLIENTS, CALLERS, STREAMS = 8, 4, 4, 2


@dataclasses.dataclass(frozen=True, slots=True)
class Soak:
    """The result of a soak."""

    before: Figures
    after: Figures
    tally: Tally
    compiled: float
    status: int

    @property
    def grown(self) -> list[str]:
        return beyond(self.before, self.after)

    @property
    def faults(self) -> list[str]:
        """Return what else went wrong."""
        found = self.tally.wrong[:5]
        if self.compiled:
            found.append(f"{self.compiled:.0f} programs were compiled")
        if self.status:
            found.append(f"the server ended with {self.status}")
        return found


def main() -> int:
    arguments = parse()
    print(heading(), flush=True)
    with contextlib.ExitStack() as stack:
        bundles = arguments.bundles or [
            export_small(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        ]
        try:
            passed = [
                judge(bundle, arguments.seconds, leaking=leaking)
                for bundle in bundles
                for leaking in ((True,) if arguments.leak else (False, True))
            ]
        except ServerFailed as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0 if all(passed) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of traffic for each server (default: 60)"
    )
    parser.add_argument("--leak", action="store_true", help="the control alone")
    return parser.parse_args()


def export_small(folder: Path) -> Path:
    """Export a model that is small, but has an axis of several sizes and a mask."""
    from export import TensorSpec, export_model

    def score(params, ids, mask):
        tokens = params["embedding"][ids] * mask[..., None]
        return {"tokens": tokens @ params["kernel"], "sum": tokens.sum(axis=1)}

    rng = np.random.default_rng(0)
    out = folder / "bundle"
    export_model(
        score,
        {
            "embedding": rng.standard_normal((100, 16)).astype(np.float32),
            "kernel": rng.standard_normal((16, 4)).astype(np.float32),
        },
        inputs=[
            TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=99),
            TensorSpec(name="mask", dtype="float32", shape=("_", "seq"), mask=True),
        ],
        axes={"seq": (8, 16)},
        buckets=(1, 4, 16),
        platforms=("cpu",),
        name="small",
        out=out,
    )
    return out


def judge(bundle: Path, seconds: float, *, leaking: bool) -> bool:
    """Soak one server and print the result; returns whether it is as it has to be."""
    # A short control has to leak as much as a long one.
    seconds = min(seconds, CONTROL_S) if leaking else seconds
    with running(bundle, int((1 << 20) / seconds) if leaking else 0) as server:
        answers = Answers(bundle)
        soaked = soak(server, answers, seconds, leaking=leaking)
    print(f"\n{answers.model}, {'a server that leaks' if leaking else 'the server'}")
    print(table(soaked))
    for fault in soaked.faults:
        print(fault)
    if leaking:
        unseen = [getattr(LABELS, name) for name in NAMES if name not in soaked.grown]
        print(
            "PASS: it failed, as it has to" if not unseen else f"FAIL: unseen: {', '.join(unseen)}"
        )
        return not unseen
    passed = not soaked.grown and not soaked.faults
    print("PASS" if passed else "FAIL", flush=True)
    return passed


def soak(server: Server, answers: Answers, seconds: float, *, leaking: bool) -> Soak:
    warm = Tally(seconds / 3)
    asyncio.run(traffic(server, answers, warm))
    before = server.settled()
    tally = Tally(seconds - seconds / 3)
    asyncio.run(traffic(server, answers, tally))
    # What leaks on purpose is not freed, however long one waits.
    after = server.settled(None if leaking else before)
    compiled = server.counts()["hloserve_compiles_after_ready_total"]
    tally.wrong += warm.wrong
    return Soak(before, after, tally, compiled, server.stop())


async def traffic(server: Server, answers: Answers, tally: Tally) -> None:
    """Have every kind of client ask until the time is over."""
    kinds = (
        (over_http.ask_well, server.port, GOOD_CLIENTS),
        (over_http.ask_badly, server.port, BAD_CLIENTS),
        (over_grpc.ask, server.grpc_port, CALLERS),
        (over_grpc.stream, server.grpc_port, STREAMS),
    )
    async with asyncio.TaskGroup() as group:
        for kind, port, clients in kinds:
            for _ in range(clients):
                rng = np.random.default_rng()
                group.create_task(kind(port, answers, tally, rng))


def table(soaked: Soak) -> str:
    rows = [("", "before", "after", "")]
    for name in NAMES:
        figures = (f"{getattr(f, name):,.0f}" for f in (soaked.before, soaked.after))
        rows.append((getattr(LABELS, name), *figures, "grew" if name in soaked.grown else "ok"))
    rows += [(kind, "", f"{count:,}", "") for kind, count in sorted(soaked.tally.counts.items())]
    return columns(rows)


if __name__ == "__main__":
    sys.exit(main())
