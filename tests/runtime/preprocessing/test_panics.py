"""The library's own words on a panic: printed once in a process, with nothing else lost."""

import os
import subprocess
import sys
from pathlib import Path

from pytest import mark

from runtime.preprocessing.panics import PanicOutput

ROOT = Path(__file__).parents[3]
_PANICKING = """
import os
import threading
from runtime.preprocessing.tokenizer import Tokenizer, TokenizerPanic
from tests.tokenizer_files import splitting, words

tokenizer = Tokenizer(words(splitting("(z+)+$")))
panicked = []

def fail():
    for _ in range(5):
        try:
            tokenizer.encode(["the cat", "z" * 24 + "!"])
        except TokenizerPanic as error:
            panicked.append(str(error))
        assert len(tokenizer.encode(["the cat"])[0].ids) == 3

fail()
threads = [threading.Thread(target=fail) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
os.write(2, b"last words\\n")
print(len(panicked), tokenizer.panics, *sorted(set(panicked)))
"""


@mark.e2e
def test_a_panic_is_printed_once():
    """Many texts on which the library panics are errors, and one message; others go on."""
    done = subprocess.run(
        [sys.executable, "-c", _PANICKING],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "RUST_BACKTRACE": "0"},
    )

    assert done.stdout == "15 15 Onig: Regex search error: retry-limit-in-match over\n", done.stderr
    assert done.stderr.count("panicked at") == 1
    assert done.stderr.endswith("last words\n")


def test_what_is_printed_passes_until_a_panic(capfd):
    """Nothing is lost before a panic, and afterwards what is printed outside of calls is not."""
    output = PanicOutput()
    with output.limited():
        os.write(2, b"before ")
    output.close()
    with output.limited():
        os.write(2, b"first ")
        with output.limited():
            os.write(2, b"second ")
        os.write(2, b"third ")
    os.write(2, b"after")

    assert capfd.readouterr().err == "before after"


def test_without_a_descriptor_it_is_printed(capfd, monkeypatch):
    """Where there is no descriptor to spare calls go on, and nothing is closed."""

    def fail(*_):
        raise OSError(24, "Too many open files")

    output = PanicOutput()
    output.close()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fail)
        with output.limited():
            os.write(2, b"printed")

    assert capfd.readouterr().err == "printed"
