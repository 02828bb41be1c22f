"""Directories that go with the process, however it ends."""

import shutil
import threading

from pytest import fixture

from runtime import scratch
from runtime.scratch import remove_all, temporary_directory


@fixture(autouse=True)
def own(monkeypatch, tmp_path):
    """Directories of this test alone, below its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "_in_use", set())
    monkeypatch.setattr(scratch, "_making", threading.Lock())


def test_a_process_that_ends_within_leaves_nothing(tmp_path):
    """
    A process that is ended in the middle of a context has its directories removed, with their contents.
    """
    with temporary_directory("some-") as one, temporary_directory("some-") as other:
        (one / "folder").mkdir()
        (other / "file").touch()
        remove_all()

        assert list(tmp_path.iterdir()) == []


def test_a_directory_that_another_process_writes_into_goes_all_the_same(tmp_path, monkeypatch):
    """
    What is written while a directory is emptied keeps it from going: it is tried again.
    """
    removing = shutil.rmtree
    writes = iter(range(3))

    def rmtree(path, **options):
        removing(path, **options)
        if next(writes, None) is not None:
            path.mkdir()
            (path / "late").touch()

    with temporary_directory("some-"):
        monkeypatch.setattr(shutil, "rmtree", rmtree)
        remove_all()

        assert list(tmp_path.iterdir()) == []


def test_what_was_left_in_order_is_not_removed_again(tmp_path):
    """
    A name that is free again may be another process's.
    """
    with temporary_directory("some-") as path:
        pass
    path.mkdir()
    remove_all()

    assert list(tmp_path.iterdir()) == [path]
