"""A start: what it loads and checks, what it keeps, and what it does with a cache that is wrong."""

import dataclasses
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
from pytest import fixture, mark, raises

from runtime import load, loading, startup
from runtime.bundle import open_bundle
from runtime.cache_files import FOLDER
from runtime.errors import ExecutionError, IntegrityError
from runtime.executable_cache import ExecutableCache
from runtime.model import Model
from runtime.program import Program, count_compiles
from runtime.startup import start
from tests.runtime import bad_caches

DATA = Path(__file__).parents[1] / "data" / "bundles"
(FROZEN,) = DATA.glob("format-1_*")
COMPILES = count_compiles()


def started(bundle, cache_dir, said=None):
    """Start with a cache; return what came of it, and how many programs were compiled for it."""
    before = COMPILES()
    cache = ExecutableCache(cache_dir, (said if said is not None else []).append)
    found = start(open_bundle(bundle), "cpu", cache=cache, isolated=False)
    return found, COMPILES() - before


def answers(model):
    """Answer some rows in every program."""
    return [
        model.run(program, model.blank(batch, group.sizes))
        for group in model.groups.values()
        for batch, program in group.programs.items()
    ]


@fixture(scope="module")
def filled(tmp_path_factory):
    """A cache that a start has filled, and what it answered."""
    folder = tmp_path_factory.mktemp("filled")
    found, _ = started(FROZEN, folder)
    return folder, answers(found.model)


@fixture(scope="module")
def other(tmp_path_factory, classifier_bundle):
    """A cache of another bundle."""
    folder = tmp_path_factory.mktemp("other")
    started(classifier_bundle, folder)
    return folder / FOLDER


@fixture
def cache_dir(filled, tmp_path):
    """A copy of the cache that is filled."""
    shutil.copytree(filled[0], tmp_path / "cache", copy_function=shutil.copy2)
    return tmp_path / "cache"


def test_what_was_compiled_while_the_bundle_was_test_loaded_is_kept_whole(tmp_path):
    """Programs that came from the process that opened the bundle first are loaded by the next start."""
    said = []
    found = [
        start(
            open_bundle(FROZEN),
            "cpu",
            cache=ExecutableCache(tmp_path, said.append),
            progress=said.append,
        )
        for _ in range(2)
    ]

    assert [one.compiled for one in found] == [0, 0]
    assert [line for line in said if "compil" in line] == []
    assert answers(found[0].model)[0][0].tobytes() == answers(found[1].model)[0][0].tobytes()


def test_the_second_start_compiles_nothing(tmp_path):
    """What one start has compiled and measured the next one loads, and it answers bit for bit alike."""
    first, compiled = started(FROZEN, tmp_path)
    second, again = started(FROZEN, tmp_path)

    assert (compiled, again) == (4, 0)
    assert (first.compiled, second.compiled) == (4, 0)
    for a, b in zip(answers(first.model), answers(second.model), strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.tobytes() == y.tobytes()
    costs = [{s: g.planner.costs for s, g in one.model.groups.items()} for one in (first, second)]
    assert costs[0] == costs[1]


def test_others_may_load_as_soon_as_the_cache_has_all(tmp_path, monkeypatch):
    """A first start lets other processes load once it has compiled, a second one before it loads."""
    seen = []

    def compile_all(*arguments, **options):
        seen.append("programs")
        return loading.compile_all(*arguments, **options)

    monkeypatch.setattr(startup, "compile_all", compile_all)
    for _ in range(2):
        start(
            open_bundle(FROZEN),
            "cpu",
            cache=ExecutableCache(tmp_path),
            isolated=False,
            on_loadable=lambda _: seen.append("others"),
        )

    assert seen == ["programs", "others", "others", "programs"]


def test_load_shares_the_cache(cache_dir, tmp_path):
    """`load` loads what a server has compiled, and the other way round."""
    before = COMPILES()
    load(FROZEN, "cpu", cache_dir=cache_dir)
    assert COMPILES() == before

    load(FROZEN, "cpu", cache_dir=tmp_path / "new")
    assert started(FROZEN, tmp_path / "new")[1] == 0


def test_what_was_not_verified_here_is_checked_in_full_once(tmp_path, copy_of, unverified):
    """A bundle that no export has verified on this platform is, at its first start alone."""
    bundle = unverified(copy_of(FROZEN))

    first, _ = started(bundle, tmp_path / "cache")
    second, _ = started(bundle, tmp_path / "cache")

    assert (first.full, second.full) == (True, False)
    assert started(FROZEN, tmp_path / "another")[0].full is False


@fixture
def unverified():
    """Makes a bundle one that was verified nowhere."""

    def make(bundle):
        path = bundle / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"verified": []}))
        return bundle

    return make


@mark.parametrize("kind", bad_caches.KINDS, ids=lambda kind: kind.__name__)
@mark.parametrize("seed", [1, 2])
def test_a_wrong_cache_costs_time_and_no_answer(cache_dir, filled, other, tmp_path, kind, seed):
    """Whatever is wrong with a cache, the model that starts answers as if there were none."""
    elsewhere = shutil.copytree(other, tmp_path / "other")
    kind(cache_dir / FOLDER, random.Random(seed), elsewhere)

    found, _ = started(FROZEN, cache_dir)

    assert (found.failed, found.mixing) == ((), ())
    for a, b in zip(answers(found.model), filled[1], strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    assert found.model.predict(
        {s.name: np.ones(s.concrete(3, {"seq": 4}), s.dtype) for s in found.model.signature.inputs}
    )


def test_why_a_file_is_not_used_is_said_in_one_line(cache_dir):
    """For each file that is skipped a line has the reason."""
    said = []
    bad_caches.flipped(cache_dir / FOLDER, random.Random(1), None)

    _, compiled = started(FROZEN, cache_dir, said)

    assert compiled == 1
    (line,) = said
    assert line.startswith("executable cache: ")
    assert line.endswith("is not used: its bytes are not those that its header names")
    assert "\n" not in line


def test_a_program_that_answers_wrongly_is_thrown_away(cache_dir):
    """What was loaded and does not reproduce the goldens is compiled anew, and kept so."""
    bad_caches.of_another_program(cache_dir / FOLDER, random.Random(3), None)

    assert started(FROZEN, cache_dir)[1] == 4
    assert started(FROZEN, cache_dir)[1] == 0


def test_rows_that_were_seen_to_mix_cost_one_compile(tmp_path, monkeypatch):
    """Where rows depend on each other on this device, that is cached, and later starts compile nothing."""
    run = Model.run

    def by_place(model, program, inputs):
        first, *others = run(model, program, inputs)
        moved = np.array(first)
        moved[len(moved) // 2] = np.nextafter(moved[len(moved) // 2], np.float32(9))
        return (moved, *others)

    monkeypatch.setattr(Model, "run", by_place)

    starts = [started(FROZEN, tmp_path) for _ in range(3)]

    assert all(found.mixing for found, _ in starts)
    assert [compiled for _, compiled in starts] == [4, 0, 0]


def test_a_program_that_fails_here_compiled_too_is_an_error(cache_dir, monkeypatch):
    """Where a program that was compiled here fails, the device is at fault."""

    def fail(*_):
        raise ExecutionError("the device is gone")

    monkeypatch.setattr(Program, "call", fail)

    with raises(ExecutionError, match="the device is gone"):
        started(FROZEN, cache_dir)


@mark.parametrize("where", ["file", "read-only", "full"])
def test_a_start_works_where_nothing_can_be_kept(tmp_path, monkeypatch, where):
    """A cache that cannot be written is reported once, and nothing else."""
    folder = tmp_path / "cache"
    if where == "file":
        folder.write_text("")
    else:

        def refuse(*_, **__):
            raise OSError(30 if where == "read-only" else 28, os.strerror(28))

        monkeypatch.setattr("runtime.cache_files.Path.replace", refuse)
    said = []

    found, compiled = started(FROZEN, folder, said)

    assert (found.failed, compiled, len(said)) == ((), 4, 1)


def test_two_writers_leave_whole_files(tmp_path):
    """Several processes that keep the same thing at once leave one that is whole."""
    caches = [ExecutableCache(tmp_path) for _ in range(4)]
    key = {"a": 1}

    for i in range(20):
        for cache in caches:
            cache.keep_record(key, {"n": i})

    assert caches[0].record(key) == {"n": 19}
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


def test_the_oldest_go_where_there_are_too_many_bytes(tmp_path, monkeypatch):
    """The cache has a bound; what was not used for longest is removed, never what was just written."""
    monkeypatch.setattr("runtime.cache_files.MAX_BYTES", 1000)
    cache = ExecutableCache(tmp_path)
    for i in range(10):
        cache.keep_record({"n": i}, {"x": "y" * 100})
        for path in (tmp_path / FOLDER).iterdir():
            status = path.stat()
            os.utime(path, (status.st_atime - 10, status.st_mtime - 10))

    kept = [i for i in range(10) if cache.record({"n": i})]

    assert kept == list(range(kept[0], 10))
    assert 0 < len(kept) < 10


def test_a_golden_that_is_not_there_is_refused():
    """A bundle without goldens for a group of programs is not served."""
    bundle = open_bundle(FROZEN)
    manifest = dataclasses.replace(bundle.manifest, goldens=())
    bundle = dataclasses.replace(bundle, manifest=manifest)

    with raises(IntegrityError, match="expected one that b1-seq4 can answer, got none"):
        start(bundle, "cpu", isolated=False)
