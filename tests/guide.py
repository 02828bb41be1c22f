"""A guide in Markdown as a program: its blocks are run in the order they stand in.

* a ``python`` block runs in this process, and prints the ``text`` block right behind it
* in a ``console`` block what follows a line with ``$`` is what that command prints; ``…`` there
  stands for anything, times and durations are not compared, and other numbers nearly so
"""

import contextlib
import io
import math
import re
import signal
import subprocess
import sys

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CLOCK = re.compile(r"\b\d\d:\d\d:\d\d\b|\bafter [\d.]+ s\b")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.])")

# What a guide calls by its name alone, and where a test has it from.
_PYTHON = '#!/bin/bash\nexec {python} {module} "$@"\n'
_PIPE_CLOSED = 128 + signal.SIGPIPE
_HLOSERVE = "from hloserve.cli import main; raise SystemExit(main())"
# Does what gcloud does with a request: posts it to the predict route; fails unless it is answered.
_GCLOUD = """#!{python}
import argparse, urllib.request
from pathlib import Path

parser = argparse.ArgumentParser()
for word in ("group", "kind", "command", "endpoint"):
    parser.add_argument(word)
for flag in ("--region", "--json-request", "--request", "--http-headers"):
    parser.add_argument(flag)
asked = parser.parse_args()
raw = asked.command == "raw-predict"
assert raw or asked.command == "predict"
file = asked.request.removeprefix("@") if raw else asked.json_request
headers = dict([(asked.http_headers or "Content-Type=application/json").split("=", 1)])
request = urllib.request.Request("{url}", Path(file).read_bytes(), headers)
urllib.request.urlopen(request)
"""


def blocks(text):
    """Return each block: its language and what is in it."""
    return _BLOCK.findall(text)


def commands(block):
    """Return each command of a console block, and what it prints."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        count = next(i for i, line in enumerate(lines, 1) if not line.endswith("\\"))
        yield "\n".join(lines[:count]), "\n".join(lines[count:])


def alike(shown, printed):
    """Return whether a command printed what the guide shows."""
    shown, printed = (" ".join(_CLOCK.sub("", text).split()) for text in (shown, printed))
    pattern, numbers, end = "", [], 0
    for match in _NUMBER.finditer(shown):
        pattern += re.escape(shown[end : match.start()]) + f"({_NUMBER.pattern})"
        numbers.append(float(match[0]))
        end = match.end()
    pattern += re.escape(shown[end:])
    found = re.fullmatch(pattern.replace("…", ".*?"), printed)
    return found is not None and all(
        math.isclose(float(text), number, rel_tol=1e-3)
        for text, number in zip(found.groups(), numbers, strict=True)
    )


def run_python(code, names):
    """Run a Python block; return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)  # noqa: S102
    return printed.getvalue()


def make_tools(folder, url):
    """Write what the guide's commands are called by; return the folder for PATH."""
    folder.mkdir()
    tools = {
        "python": _PYTHON.format(python=sys.executable, module=""),
        "hloserve": _PYTHON.format(python=sys.executable, module=f"-c '{_HLOSERVE}'"),
        "gunicorn": _PYTHON.format(python=sys.executable, module="-m gunicorn"),
        "gcloud": _GCLOUD.format(python=sys.executable, url=url),
    }
    for name, text in tools.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def run_command(command, folder, environ):
    """Run a command as a shell does; return its exit status and what it prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    # A pipe whose reader, such as head, has read enough is no failure.
    return 0 if done.returncode == _PIPE_CLOSED else done.returncode, done.stdout
