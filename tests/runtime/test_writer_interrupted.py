"""A writer that is killed, or finds the disk full, leaves a bundle or nothing."""

import os
import subprocess
import sys
from pathlib import Path

from pytest import mark

from runtime.writer import BundleWriter
from tests.runtime.fake_bundle import FILES
from tests.runtime.test_writer import beside, listed, version_at

ROOT = Path(__file__).parents[2]


def tried(root, mode, *flags):
    """Interrupt writers in processes of their own.

    Returns:
      Their exit statuses, and what those that were refused said.
    """
    command = [sys.executable, "-m", "tests.runtime.interrupted", mode, str(root), *flags]
    # Python warns of a fork while threads run; NumPy's linear algebra would start some.
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=alone
    )
    lines = done.stdout.splitlines()
    statuses = [line for line in lines if line.lstrip("-").isdigit()]
    return [int(line) for line in statuses], [line for line in lines if line not in statuses]


@mark.e2e
def test_killed_writer_leaves_nothing_or_a_bundle(tmp_path):
    """
    A writer killed at any step leaves no bundle or a whole one, and the next one cleans up.
    """
    statuses, _ = tried(tmp_path, "killed")

    assert statuses[-1] == 0
    assert set(statuses[:-1]) == {-9}
    assert len(statuses) > len(FILES)
    for number in range(1, len(statuses) + 1):
        target = tmp_path / str(number) / "bundle"
        assert not target.exists() or version_at(target) == "2"
        with BundleWriter(target, overwrite=True):
            pass
        assert beside(target) in ([], ["bundle"])


@mark.e2e
def test_killed_replacement_leaves_a_bundle(tmp_path):
    """
    A writer killed while replacing leaves the old bundle or the new one, whole; between its
    two renames there is none for a moment, and the next writer finishes the swap.
    """
    statuses, _ = tried(tmp_path, "killed", "--overwrite")
    absent = 0

    assert statuses[-1] == 0
    assert set(statuses[:-1]) == {-9}
    for number in range(1, len(statuses) + 1):
        target = tmp_path / str(number) / "bundle"
        absent += not target.exists()
        with BundleWriter(target, overwrite=True):
            assert version_at(target) in {"1", "2"}
        assert beside(target) == ["bundle"]
    assert absent == 1


@mark.e2e
@mark.parametrize("mode", ["failing", "full"])
def test_full_disk_leaves_nothing(tmp_path, mode):
    """
    Where the disk is full, at whichever step, the writer fails and leaves nothing behind.
    """
    statuses, _ = tried(tmp_path, mode)

    assert statuses[-1] == 0
    assert set(statuses[:-1]) <= {3, 28}
    assert len(statuses) > 3
    for number in range(1, len(statuses)):
        assert listed(tmp_path / str(number)) == []
    assert version_at(tmp_path / str(len(statuses)) / "bundle") == "2"


@mark.e2e
@mark.parametrize("mode", ["failing", "full"])
def test_full_disk_keeps_the_old_bundle(tmp_path, mode):
    """
    Where the disk is full while replacing, even at the last rename, the old bundle stays.
    """
    statuses, errors = tried(tmp_path, mode, "--overwrite")

    assert statuses[-1] == 0
    assert set(statuses[:-1]) <= {3, 28}
    for number in range(1, len(statuses)):
        target = tmp_path / str(number) / "bundle"
        assert (version_at(target), beside(target)) == ("1", ["bundle"])
    if mode == "failing":
        last = tmp_path / str(len(statuses) - 1) / "bundle"
        assert errors == [f"bundle {last}: No space left on device"]


@mark.e2e
def test_one_of_many_writers_wins(tmp_path):
    """
    Of eight processes that write one bundle at once one succeeds and seven report that it exists.
    """
    statuses, errors = tried(tmp_path, "race")
    target = tmp_path / "bundle"

    assert sorted(statuses) == [0, 3, 3, 3, 3, 3, 3, 3]
    assert version_at(target) == str(statuses.index(0))
    assert errors == [f"bundle {target}: exists; pass --overwrite to replace it"] * 7
    assert beside(target) == ["bundle", "first"]
