"""Write docs/troubleshooting.md from the tables of error codes, exit statuses and exceptions.

    python -m scripts.troubleshooting [--check]

What an error means stands in the code: its class, its status, the help of its command. What to do
about it stands here. An error code, a status or an exception without a remedy ends it.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import export.errors
import export.parser
import runtime.cli.parser
import runtime.errors
import server.options
import server.status

PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"

EXIT_REMEDIES = {
    "server": {
        "0": "Nothing.",
        "1": "Raise `--drain-timeout-s`, and the time that the container is given to stop, above the longest request.",
        "2": "Change what the line names. For a port: `--port` and `--grpc-port`, or stop what has it (`ss -ltnp`). For a package: the `pip install` in the line.",
        "3": "`hloserve inspect BUNDLE` names the file or value at fault; copy or export the bundle again. If jax is too new for it: `hloserve refresh`.",
        "4": "`hloserve verify BUNDLE` lists the programs with the difference and the tolerance. Do not serve it here: its answers would not be the model's. On a GPU export with `--matmul-precision highest`, and compare again; on a CPU report it.",
        "5": "`nvidia-smi` shows whether the device is there; name it with `--device`, or take `cpu`. If a batch took longer than `--device-timeout-s`, raise that or export smaller buckets. Let the container be started again.",
    },
    "runtime": {
        "0": "Nothing.",
        "1": "Of doctor, before that version of jax is installed: `hloserve refresh BUNDLE --out NEW` with a version in between. Of predict: the line has the reason of the last row; the others are in `errors-*.jsonl`.",
        "2": "`hloserve COMMAND --help` has the options; the line names what is wrong and what is nearest to it.",
        "3": "The line names the file or value. Copy or export the bundle again; if jax is outside of the compatibility window, see [compatibility](compatibility.md).",
        "4": "The output names the program, the output and the difference. See exit status 4 of the server.",
        "5": "Name a device that is there with `--device`; if memory is short, free it or export smaller buckets.",
    },
    "export": {
        "0": "Nothing.",
        "1": "The line names what does not fit and what to do; the list of [exceptions](#exceptions-of-an-export) has the kinds.",
        "2": "`hloserve export --help` has the options; the line names the flag and what is nearest to it.",
    },
}

CODE_REMEDIES = {
    "invalid_argument": "The message names the instance, the input, what was expected and what was sent. `GET /v2/models/NAME` and the page at `/` show names, dtypes and shapes.",
    "incomplete_body": "Send as many bytes as `Content-Length` says, and the final chunk of a chunked body. A proxy that cuts off uploads does this too.",
    "not_found": "Correct the path, or the name or version of the model: the page at `/` has them. Paths have one spelling, without `//` or a slash at the end.",
    "method_not_allowed": "Use a method that the header `Allow` lists: POST for inferences, GET for the rest.",
    "head_timeout": "Send all headers within 30 s. A client that opens connections in advance and leaves them idle causes it without harm.",
    "body_timeout": "Send at least 64 KiB of a body each 60 s; read the answers of a stream.",
    "too_large": "Send fewer rows or bytes, in several requests; or raise `--max-request-rows`, `--max-json-bytes`, `--max-body-bytes`. A binary tensor is smaller than the same in JSON.",
    "headers_too_large": "Send at most 64 KiB of headers; look for cookies that grow.",
    "unsupported_media": "Send `application/json`, or `application/octet-stream` with `Inference-Header-Content-Length`; encodings are `gzip`, `deflate` and none.",
    "non_finite_output": "Check the input first. If the model answers NaN or infinity rightly, choose `--nonfinite null` or `string`, or declare the output at export with `--allow-infinite`.",
    "internal": "The client is not at fault. Look for the `request_id` in the server's log, which has the traceback.",
    "unsupported": "Leave out that part of the protocol, such as shared memory or sequences.",
    "not_ready": "Wait for `GET /health` to answer 200. If it never does, the server's last log lines and its exit status say why.",
    "queue_full": "Try again after a short random delay. If it stays: more replicas, `--processes` on a CPU, larger buckets, or a longer queue (`--max-queue-rows`) at the price of waiting.",
    "draining": "Try again: another replica answers. If clients see it at each deployment, raise `--drain-delay-s` above the time that the load balancer takes to notice.",
    "out_of_memory": "Try again. If it stays, export smaller buckets, or end what else uses the device's memory.",
    "deadline": "Allow more time (`--request-timeout-ms`, or `timeout_ms` of the request), send fewer rows, or add replicas: `hloserve_queue_duration_seconds` shows whether requests wait.",
}

EXCEPTION_REMEDIES = {
    "BundleError": "The message says which of the kinds below it is.",
    "ManifestError": "`error.where` is the JSON path. The manifest was edited or damaged: copy or export the bundle again.",
    "UnsupportedFormat": "Install a newer hloserve: the bundle was written by one.",
    "IntegrityError": "Copy the bundle again, with all its files. If it was replaced in place while in use, rename a new directory over it instead.",
    "IncompatibleProgram": "Export with `platforms=` that has this device's; or refresh the bundle, if jax is too new for it.",
    "DoesNotFit": "Free memory of the device, export smaller buckets, or take a larger device.",
    "GoldenMismatch": "See exit status 4 of the server.",
    "DeviceUnavailable": "Name a device that JAX sees: `python -c 'import jax; print(jax.devices())'`.",
    "InvalidField": "The message names the value; an export says which option to change.",
    "MissingLibrary": "Install what the message names, where the bundle is loaded.",
    "InvalidInput": "The message names the input, what was expected and what was given.",
    "SignatureMismatch": "Compare with `model.signature`, or with `hloserve inspect BUNDLE`.",
    "MalformedRequest": "Send the form that the protocol's section in [serving](serving.md#ask) shows.",
    "NonFiniteOutput": "See the error code `non_finite_output`.",
    "ExecutionError": "The message is XLA's. Load the model anew; if it stays, the device is at fault.",
    "ExportError": "The message says what to do.",
    "UsageError": "Correct the flag that the message names.",
    "CheckpointError": "Name the checkpoint's directory or file: `--params` takes the forms that [export](export.md#weights) lists.",
    "ParamsError": "The message lists the names or shapes that differ. `--params-path` picks a part of a TrainState, `--config` sets the sizes of a model.",
    "Untraceable": "The message has the line of your model. Under tracing values are unknown: use `jnp.where` or `jax.lax.cond` for branches, and pass switches with `--call-arg`.",
    "SeveralDevices": "Export outside of a mesh, or gather the params on one device first.",
    "RowMixing": "Fix batch statistics (`use_running_average=True`), or drop what combines rows: the message has the line. `--allow-row-mixing` is for models that are meant to; each request is then a batch of its own.",
    "VerificationError": "The message names the program and the difference. Padding that counts: pass a mask, or export without the bucketed axis.",
}

ABOUT = """\
# Troubleshooting

<!-- made by python -m scripts.troubleshooting -->

Every error is one line: *what, where: expected X, got Y; do Z*. If the line alone does not help, look it up here: a command by its
[exit status](#exit-statuses), a response by its [error code](#error-codes), an exception in Python by its [class](#exceptions-of-a-bundle). For what has no
error line, begin with the [symptoms](#symptoms).

`hloserve doctor BUNDLE` loads a bundle on this device and says whether it works; `hloserve serve doctor --bundle BUNDLE` checks a server as
Vertex AI would.
"""

CODES_ABOUT = """\
A response has the code as `code`; over gRPC the status and the message say it. The status decides whether a client may try again:
503 and 504 yes, 4xx no.
"""

SYMPTOMS = """\
## Symptoms

| symptom | cause | remedy |
|---|---|---|
| the page at `/` says *starting*, `/health` answers 503 | programs are being compiled and checked | wait for the log line `ready`; with `--cache-dir` the next start loads what is compiled |
| every start compiles | no `--cache-dir`, or another jaxlib, driver or CPU than the cache has | one line of the log says why a program was compiled |
| answers differ in the last digits from one bucket to another | XLA rounds differently in programs of other sizes | it is within the recorded drift; one row's answer is the same bit for bit within a bucket |
| requests wait although the device is idle | `--max-queue-delay-ms` is above 0, or the clients wait for each other | set it to 0; `x-hloserve-queue-us` shows a request's wait |
| a log line says that rows depend on each other | the model mixes rows, on this device | its requests are not batched; see the exception `RowMixing` |
| gRPC clients keep to one replica | a connection stays with the server that it reached | `--grpc-max-connection-age-s 300` |
| a browser shows `method_not_allowed` | the predict route takes POST | open the page at `/` |
| `python -m server` runs a file of yours | a `server.py` in the working directory comes first | `hloserve serve`, which finds its own |
"""


class NoRemedy(Exception):
    """Something has no remedy, or a remedy is for nothing that exists."""


def page() -> str:
    """Return the page in Markdown."""
    return "\n".join(
        (
            ABOUT,
            "## Exit statuses\n",
            *_exit_statuses(),
            "## Error codes\n",
            CODES_ABOUT,
            _table(("code", "HTTP", "gRPC", "cause", "remedy"), _codes()),
            "## Exceptions of a bundle\n",
            "Of `runtime`, as `load` and `Model.predict` raise them.\n",
            _table(("exception", "cause", "remedy"), _exceptions(runtime.errors)),
            "## Exceptions of an export\n",
            "Of `export`, as `export_model` raises them and the command prints them.\n",
            _table(("exception", "cause", "remedy"), _exceptions(export.errors)),
            SYMPTOMS,
        )
    )


def statuses(text: str) -> dict[str, str]:
    """Read the exit statuses of a command's help: lines or clauses of `N meaning`."""
    listed = text.partition("xit status:")[2] or text
    found = re.split(r"(?:^|[\n;])\s*(\d)\s+", " " + listed.strip().rstrip("."))
    pairs = zip(found[1::2], found[2::2], strict=True)
    return {number: " ".join(meaning.split()) for number, meaning in pairs}


def _exit_statuses() -> Iterator[str]:
    helps = {
        "server": (server.options._STATUSES, "`hloserve serve`"),  # noqa: SLF001
        "runtime": (
            runtime.cli.parser.STATUSES,
            "`hloserve verify` and the other commands that read a bundle",
        ),
        "export": (export.parser.EXAMPLES, "`hloserve export`"),
    }
    for name, (text, title) in helps.items():
        meanings = statuses(text)
        _expect_same(f"exit statuses of {name}", meanings, EXIT_REMEDIES[name])
        rows = ((n, meaning, EXIT_REMEDIES[name][n]) for n, meaning in meanings.items())
        yield f"### {title}\n"
        yield _table(("status", "cause", "remedy"), rows)


def _codes() -> Iterator[tuple[str, ...]]:
    causes: dict[str, list[str]] = {}
    found = {}
    for kind, status in server.status._TABLE.items():  # noqa: SLF001
        found[status.error_code] = status
        causes.setdefault(status.error_code, []).append(_sentence(kind))
    internal = server.status.INTERNAL
    found[internal.error_code] = internal
    causes[internal.error_code] = ["Something failed that should not have."]
    _expect_same("error codes", found, CODE_REMEDIES)
    for code, status in sorted(found.items(), key=lambda item: (item[1].http, item[0])):
        cause = " ".join(causes[code])
        yield f"`{code}`", str(status.http), f"`{status.grpc}`", cause, CODE_REMEDIES[code]


def _exceptions(module: object) -> Iterator[tuple[str, ...]]:
    for name, kind in vars(module).items():
        if inspect.isclass(kind) and issubclass(kind, Exception):
            if name not in EXCEPTION_REMEDIES:
                raise NoRemedy(f"exceptions: expected a remedy for {name}")
            yield f"`{name}`", _sentence(kind), EXCEPTION_REMEDIES[name]


def _sentence(kind: type) -> str:
    """Return the first line of a class's docstring."""
    return str(inspect.getdoc(kind)).partition("\n")[0]


def _expect_same(what: str, found: Mapping[str, object], remedies: Mapping[str, object]) -> None:
    if set(found) != set(remedies):
        differ = sorted(set(found) ^ set(remedies))
        raise NoRemedy(f"{what}: expected a remedy for each and no others, differ in {differ}")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    lines.extend([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> int:
    """Write the page, or compare it with what would be written."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="compare alone; 1 if it differs")
    if not parser.parse_args().check:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        print(f"error: {PAGE.name}: run python -m scripts.troubleshooting", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
