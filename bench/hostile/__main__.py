"""`python -m bench.hostile texts|tokenizers`: bad texts for a running server, bad tokenizers for export and start.

    python -m bench.hostile texts --each 300
    python -m bench.hostile tokenizers --each 300

Beside each bad text, in its batch and in its request where one row can fail by itself, a good one is
asked, whose answer has to be the same bit for bit. Each tokenizer.json goes through an export, and
by a bundle whose digests were made to match through a start. Ends with 1 if a server ended, stalled
or answered otherwise, or if a file did harm.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench.hostile import small
from bench.hostile.served import running
from bench.hostile.traffic import Traffic

# What the allocator may keep of the largest bodies, for each of a dozen threads, and what a server may
# write of all that was wrong.
_GROWTH_MIB = 128.0
_LOG_BYTES = 64 * 1024


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.hostile", description="Bad texts and bad tokenizers."
    )
    parser.add_argument("what", choices=("texts", "tokenizers"))
    parser.add_argument("--each", type=int, default=300, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", metavar="KIND", help="of tokenizers; default: all kinds"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        if arguments.what == "texts":
            small.made(Path(folder) / "small")
            return texts(Path(folder) / "small", arguments.each, arguments.seed)
        # Imports JAX, which the sender of texts does without.
        from bench.hostile import files

        return files.run(Path(folder), arguments.each, arguments.seed, arguments.only)


def texts(bundle: Path, each: int, seed: int) -> int:
    """Send bad texts to a server; print what became of them, and return the exit status."""
    begin = time.monotonic()
    with running(bundle) as server:
        traffic = Traffic(server.port, server.grpc_port)
        traffic.send(1, seed)  # buffers and pools fill
        before, written = server.rss_mib(), len(server.log())
        traffic.send(each, seed + 1)
        growth, log = server.rss_mib() - before, server.log()[written:]
        traffic.close()
        status = server.stop()
    faults = dict(traffic.faults)
    if status != 0:
        faults[f"the server ended with {status}"] = 1
    if growth > _GROWTH_MIB:
        faults[f"the server took {growth:.0f} MiB more"] = 1
    if len(log) > _LOG_BYTES:
        faults[f"the server wrote {len(log)} characters: {log[:500]!r}"] = 1
    kinds = {kind for kind, _ in traffic.sent}
    print(
        f"{sum(traffic.sent.values())} requests with bad texts of {len(kinds)} kinds, by "
        f"{len({protocol for _, protocol in traffic.sent})} protocols, in "
        f"{time.monotonic() - begin:.0f} s: {sum(faults.values())} faults; "
        f"{growth:+.0f} MiB, {len(log)} characters of log"
    )
    for fault, count in sorted(faults.items()):
        print(f"{count} × {fault}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
