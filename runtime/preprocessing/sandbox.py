"""A tokenizer.json tried in a process of its own first, with limits on its time and memory.

Files have been seen that end the process that reads them, that never come to an end, and that take
all the memory there is; no `except` catches these. What comes through can be read, and encodes the
longest texts that callers can send, of several kinds.
"""

import json
import os
import subprocess
from collections.abc import Sequence

from runtime.bundle import Bundle
from runtime.child_process import python_command
from runtime.errors import BundleError, printable
from runtime.guard import signal_name
from runtime.preprocessing.raw_goldens import read_raw
from runtime.preprocessing.tokenizer import library_version
from runtime.raw_inputs import TextStage

# A tokenizer of 256,000 tokens is read in a second; texts of the longest legal size take as long.
CPU_S = 60
MEMORY_BYTES = 4 * 1024**3
# It computes and waits for nothing, but perhaps for its turn.
_WAIT = 20
_CHILD = """
import sys
from runtime.guard import mark_expendable
mark_expendable()
from runtime.preprocessing.sandbox_child import main
main(sys.argv[1:])
"""


def try_stages(bundle: Bundle) -> None:
    """Try the tokenizers of a bundle, on its own goldens among others.

    Raises:
      BundleError: one did not come through, or a file is not what the manifest says.
      MissingLibrary: the library is not installed.
    """
    for stage in bundle.manifest.preprocess:
        if not isinstance(stage, TextStage):
            continue  # its library reads nothing of the bundle
        rows = [row for golden in bundle.manifest.goldens for row in read_raw(bundle, golden)]
        try_tokenizer(
            bundle.read(stage.tokenizer),
            stage.tokenizer.path,
            max_bytes=stage.max_bytes,
            pair=stage.pair is not None,
            texts=[row[name] for row in rows for name in stage.raw_names],
        )


def try_tokenizer(
    data: bytes,
    where: str,
    *,
    max_bytes: int,
    pair: bool,
    texts: Sequence[str] = (),
    cpu_s: int = CPU_S,
    memory_bytes: int = MEMORY_BYTES,
) -> None:
    """Read a tokenizer.json, and encode texts by it, in another process.

    Args:
      data: the file.
      where: what an error calls it.
      max_bytes: the bytes of the longest texts that it has to encode.
      pair: whether it has to encode pairs of texts.
      texts: that are known, tried as well.
      cpu_s: seconds of computing that it may take.
      memory_bytes: address space that the process may have.

    Raises:
      BundleError: it did not come through; says in which way.
      MissingLibrary: the library is not installed.
    """
    library_version()
    limits = map(str, (cpu_s, memory_bytes, max_bytes, int(pair)))
    command = [*python_command(_CHILD), *limits]
    header = json.dumps(list(texts)).encode()
    try:
        done = subprocess.run(  # noqa: S603
            command,
            input=len(header).to_bytes(8, "little") + header + data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            timeout=_WAIT * cpu_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _refused(where, f"one that was not done after {_WAIT * cpu_s} s") from None
    if got := _what_became(done.returncode, done.stdout, cpu_s, memory_bytes):
        raise _refused(where, got)


def _what_became(status: int, output: bytes, cpu_s: int, memory_bytes: int) -> str:
    """Return what is wrong with a tokenizer, or nothing."""
    if status == 0:
        try:
            found = json.loads(output)
        except ValueError:
            found = None
        return str(found) if isinstance(found, str) else "no answer from the process that tried it"
    ended = signal_name(-status) if status < 0 else f"exit status {status}"
    if ended == "SIGXCPU":
        return f"one that computes for more than {cpu_s} s"
    return f"one that ends the process, or takes more than {memory_bytes >> 20} MiB ({ended})"


def _refused(where: str, got: str) -> BundleError:
    return BundleError(printable(f"{where}: expected a tokenizer that encodes any text, got {got}"))
