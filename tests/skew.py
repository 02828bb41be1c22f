"""`./build.sh test --matrix`: bundles of the oldest and newest jax, each read by the other.

    python -m tests.skew PYTHON…

Each PYTHON is of an environment with another jax. Each exports two bundles; of the one a copy is
made to look expired, and refreshed by each of the others. All of them, and the frozen ones,
are then loaded, verified and served by each. The table goes into docs/compatibility.md.
"""

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from tests.altered_bundles import with_expired_programs
from tests.serving import free_port

ROOT = Path(__file__).parents[1]
FROZEN = ROOT / "tests" / "data" / "bundles"
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- made by ./build.sh test --matrix -->\n", "<!-- end -->\n"
TIMEOUT_S = 300


@dataclasses.dataclass(frozen=True)
class Reader:
    """An environment: its Python, and the jax in it."""

    python: str
    jax: str

    @classmethod
    def at(cls, python):
        """Return the environment of a Python, with the version of its jax."""
        command = [python, "-c", "import jax; print(jax.__version__)"]
        return cls(
            python,
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip(),
        )

    def run(self, *command):
        """Run a command of this environment; return its exit status and what it prints."""
        done = subprocess.run(
            [self.python, *map(str, command)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        return done.returncode, done.stdout, done.stderr

    def make(self, *command):
        """Run a command that has to succeed."""
        status, _, errors = self.run(*command)
        if status:
            raise RuntimeError(f"{' '.join(map(str, command))}: {errors}")

    def read(self, bundle):
        """Load, verify and serve a bundle; return the text of a cell of the table."""
        status, out, errors = self.run(
            "-m", "runtime", "doctor", bundle, "--device", "cpu", "--json"
        )
        if status > 1:
            return f"FAILED: {json.loads(out)['error'] if out else errors}"
        forms = {program["form"] for program in json.loads(out)["programs"]}
        status, out, errors = self.run("-m", "runtime", "verify", bundle, "--device", "cpu")
        if status:
            return f"FAILED to verify: {(out or errors).splitlines()[-1]}"
        if problem := self.serve(bundle):
            return f"FAILED to serve: {problem}"
        return f"from {' and '.join(f'`.{form}`' for form in sorted(forms))}"

    def serve(self, bundle):
        """Serve a bundle and send it one request; return the error, if any."""
        port = free_port()
        command = [self.python, "-m", "server", "--bundle", str(bundle), "--device", "cpu"]
        options = [
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--grpc-port",
            "-1",
            "--drain-delay-s",
            "0",
        ]
        with subprocess.Popen(
            [*command, *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as server:
            said = []
            for line in server.stdout:
                said.append(line)
                if "ready: " in line:
                    break
            try:
                body = json.dumps({"instances": [instance_for(bundle)]}).encode()
                with contextlib.closing(
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/predict", body, timeout=30)
                ) as answer:
                    assert len(json.load(answer)["predictions"]) == 1
            except (OSError, KeyError, ValueError, AssertionError) as error:
                return f"{error}; {said[-1].strip() if said else ''}"
            finally:
                server.terminate()
            server.communicate(timeout=TIMEOUT_S)
        return "" if server.returncode == 0 else f"exit status {server.returncode}"


def main(pythons):
    """Fill the table; returns the exit status."""
    readers = [Reader.at(python) for python in pythons]
    with tempfile.TemporaryDirectory(prefix="skew-") as folder:
        rows = []
        for name, bundle in bundles(readers, Path(folder)):
            cells = []
            for reader in readers:
                cells.append(reader.read(bundle))
                print(f"{name}, read by jax {reader.jax}: {cells[-1]}", file=sys.stderr, flush=True)
            rows.append([name, *cells])
    header = ["bundle", *(f"read by jax {reader.jax}" for reader in readers)]
    text = "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *rows])
    print(text, end="")
    page = PAGE.read_text()
    PAGE.write_text(
        re.sub(f"({BEGIN})(.*)({END})", lambda m: m[1] + text + m[3], page, flags=re.DOTALL)
    )
    return int(any("FAILED" in cell for row in rows for cell in row[1:]))


def instance_for(bundle):
    """Make one instance: of three tokens, or of texts where the bundle takes these."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    if stages := manifest.get("preprocess"):
        return {s[key]: "the cat" for s in stages for key in ("input", "pair") if key in s}
    names = [tensor["name"] for tensor in manifest["signature"]["inputs"]]
    return {"ids": [1, 2, 3]} | ({"lengths": 2} if "lengths" in names else {})


def bundles(readers, folder):
    """Make each bundle; return its name and where it is."""
    for writer in readers:
        place = folder / writer.jax
        writer.make("-m", "tests.data.freeze", "mood", place / "mood")
        yield f"exported by jax {writer.jax}", place / "mood"
        writer.make("-m", "bench.fuzz.small", place / "small")
        yield f"exported by jax {writer.jax}, with custom calls", place / "small"
        expired = with_expired_programs(place / "mood", place / "expired")
        yield f"exported by jax {writer.jax}, its wrapper expired", expired
        for other in readers:
            if other != writer:
                new = place / f"refreshed-{other.jax}"
                other.make("-m", "runtime", "refresh", expired, "--out", new, "--device", "cpu")
                yield f"that, refreshed by jax {other.jax}", new
    for frozen in sorted(FROZEN.iterdir()):
        form, day = frozen.name.removeprefix("format-").split("_")
        yield f"format {form}, frozen on {day}", frozen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
