"""`python -m server doctor`: check a server as Vertex AI would, locally and offline.

Without a command it only says how many instances of a bundle fit into a request.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing

from runtime.bundle import Bundle, open_bundle
from runtime.commandline import Parser, add_version, seconds, to_read
from runtime.description import columns
from runtime.errors import BundleError, printable
from runtime.invocation import error_line, spelled
from runtime.records.golden_instances import golden_instances
from server.doctor.checks import examine
from server.doctor.container import Unstartable
from server.doctor.payload_limits import (
    DEDICATED_BYTES,
    SHARED_BYTES,
    Encoding,
    encodings,
    table,
    to_json,
)
from server.doctor.result import CheckResult, Times
from server.signals import exiting_on_signals

_EPILOG = """\
The command behind -- starts the server: python -m server, or an image that is given the
variables and the machine's network:

  python -m server doctor --bundle bundle/ -- python -m server
  python -m server doctor --bundle bundle/ -- docker run --rm --network host \\
      -v $PWD/bundle:$PWD/bundle:ro -e AIP_HTTP_PORT -e AIP_HEALTH_ROUTE \\
      -e AIP_PREDICT_ROUTE -e AIP_STORAGE_URI IMAGE

exit status:
  0  Vertex would be content
  1  it would not
  2  the command line is wrong
  3  the bundle is wrong
"""


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Check a server; return the exit status."""
    arguments, command = _split(argv)
    try:
        bundle = open_bundle(arguments.bundle)
        instances = golden_instances(bundle)
    except BundleError as error:
        print(error_line(printable(str(error))), file=sys.stderr)
        return 3
    weights = encodings(instances)
    print(columns(table(weights)))
    for note in _notes(bundle, weights):
        print(f"note: {note}")
    if not command:
        return 0
    print()
    values = [json.loads(to_json(instance)) for instance in instances]
    where = str(arguments.bundle.resolve())
    failed = 0
    times = Times(start=arguments.start_s)
    try:
        # Closed whatever happens here, so that no server is left behind.
        with (
            exiting_on_signals(),
            closing(examine(command, environ, where, values, times)) as found,
        ):
            for finding in found:
                print(written(finding), flush=True)
                failed += not finding.ok
    except Unstartable as error:
        print(error_line(error), file=sys.stderr)
        return 2
    print(f"\n{failed} failed; Vertex would not be content" if failed else "\nall passed")
    return 1 if failed else 0


def parser() -> Parser:
    """Make the parser of `python -m server doctor`."""
    made = Parser(
        prog=spelled("python -m server doctor"),
        usage=spelled("python -m server doctor --bundle DIR [--start-s S] [-- CMD …]"),
        description="Start a server as Vertex AI would, and see whether it is content with it.",
        epilog=spelled(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_version(made)
    made.add_argument(
        "--bundle",
        required=True,
        type=to_read,
        metavar="DIR",
        help="bundle directory; its goldens are asked for",
    )
    made.add_argument(
        "--start-s",
        type=seconds,
        default=Times().start,
        metavar="S",
        help="longest until the server is healthy, in seconds (default: 600)",
    )
    return made


def _split(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return parser().parse_args(words[:at]), words[at + 1 :]


def _notes(bundle: Bundle, weights: Sequence[Encoding]) -> list[str]:
    notes = []
    if not weights[0].fit(DEDICATED_BYTES):
        notes.append(
            "one instance as JSON passes no endpoint: use b64, or binary tensors through rawPredict"
        )
    elif not weights[0].fit(SHARED_BYTES):
        notes.append(
            "one instance as JSON does not pass a shared endpoint: use b64, or binary tensors "
            "through rawPredict of a dedicated one"
        )
    if any(spec.dtype in ("int64", "uint64") for spec in bundle.manifest.signature.inputs):
        notes.append("Vertex's gRPC clients send doubles: integers beyond 2^53 lose digits")
    if max(bundle.manifest.buckets) < 64:
        notes.append(
            f"batch prediction sends 64 instances, the largest bucket is "
            f"{max(bundle.manifest.buckets)}: add 64 to --buckets of " + spelled("python -m export")
        )
    return notes


def written(finding: CheckResult) -> str:
    """Return a check's result as text."""
    line = f"{'pass' if finding.ok else 'FAIL'}  {finding.check:<22} {finding.observed}"
    return line if finding.ok else f"{line}\n      Vertex {finding.consequence}"
