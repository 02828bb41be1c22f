"""Models that passed their check, and runs over files in a folder."""

import json

from pytest import fixture

from runtime import load
from runtime.batch_prediction.job import Job, Options
from runtime.batch_prediction.output import open_output
from runtime.batch_prediction.places import output_place
from runtime.batch_prediction.sources import find_sources
from runtime.startup import Started


def started(model, mixing=()):
    """Return a model as a start leaves it."""
    return Started(model, (), mixing, False, 0, {}, ("checked",))


@fixture(scope="session")
def sentences(sentence_bundle):
    """The model of texts, loaded on the CPU."""
    return load(sentence_bundle, "cpu")


@fixture(scope="session")
def pictures(picture_bundle):
    """The model of images, loaded on the CPU."""
    return load(picture_bundle, "cpu")


@fixture
def small(monkeypatch):
    """Windows of 4 rows, and shards of 8."""
    monkeypatch.setattr("runtime.batch_prediction.reading._BATCHES", 1)
    monkeypatch.setattr("runtime.batch_prediction.job._SHARD_WINDOWS", 2)


@fixture
def job(tmp_path):
    """Runs a job over inputs into a folder; return what it wrote."""

    def run(model, inputs, out=tmp_path / "out", input_format=None, **options):
        own = {name: options.pop(name) for name in ("overwrite", "max_errors") if name in options}
        own |= {name: options.pop(name) for name in ("on_window", "warn") if name in options}
        sources = find_sources(list(map(str, inputs)), input_format)
        made = Job(started(model), sources, Options(**options))
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        with open_output(output_place(str(out)), scratch) as output:
            return made.run(output, scratch, **own)

    return run


@fixture
def lines(tmp_path):
    """Reads all lines of JSONL files in the output, in order."""

    def read(kind="predictions", out=tmp_path / "out"):
        files = sorted(out.glob(f"{kind}-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]

    return read


@fixture
def jsonl(tmp_path):
    """Writes rows as JSONL; return the path. Bytes are written as they are."""

    def write(rows, name="in.jsonl"):
        path = tmp_path / name
        texts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"".join(text + b"\n" for text in texts))
        return path

    return write
