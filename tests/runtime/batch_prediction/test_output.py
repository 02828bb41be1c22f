"""Folders that a run writes: what is there already is refused, or replaced where that is asked for."""

from pytest import raises

from runtime.batch_prediction.output import OutputError, open_output
from runtime.batch_prediction.writers import UnwritableError

ROWS = [{"x": [float(i), 0.0, 1.0, 2.0]} for i in range(11)]


def content(folder):
    """Return every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_complete_folder_is_kept(classifier, job, jsonl, tmp_path):
    """A second run ends in one line and changes nothing; --overwrite replaces what is there."""
    job(classifier, [jsonl(ROWS)])
    before = content(tmp_path / "out")
    with raises(OutputError) as error:
        job(classifier, [jsonl(ROWS[:2], "other.jsonl")])
    assert content(tmp_path / "out") == before
    job(classifier, [jsonl(ROWS[:2], "other.jsonl")], overwrite=True)

    assert str(error.value) == (
        f"--out {tmp_path / 'out'}: expected an empty folder, got the complete output of a run; pass "
        "--overwrite, or take another folder"
    )
    assert len((tmp_path / "out" / "predictions-00000.jsonl").read_bytes().splitlines()) == 2


def test_a_folder_with_other_files_is_refused(classifier, job, jsonl, tmp_path):
    """What is not ours is never written between, nor removed."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("…")
    with raises(OutputError) as error:
        job(classifier, [jsonl(ROWS)], overwrite=True)

    assert str(error.value) == (
        f"--out {tmp_path / 'out'}: expected an empty folder, or that of an earlier run, got 'thesis.tex' "
        "in it; take another folder"
    )


def test_the_record_of_another_program_is_not_replaced(classifier, job, jsonl, tmp_path):
    """A metadata.json that is none of ours stays, with --overwrite as well."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metadata.json").write_text('{"version": 7}')
    with raises(OutputError) as error:
        job(classifier, [jsonl(ROWS)], overwrite=True)

    assert str(error.value) == (
        f"--out {tmp_path / 'out'}: expected metadata.json of an earlier run, got another file of this name; "
        "take another folder"
    )
    assert content(tmp_path / "out") == {"metadata.json": b'{"version": 7}'}


def test_two_runs_do_not_share_a_folder(classifier, job, jsonl, tmp_path):
    """The second ends in one line while the first has the folder."""
    with open_output(tmp_path / "out", tmp_path), raises(OutputError) as error:
        job(classifier, [jsonl(ROWS)])

    assert str(error.value) == (
        f"--out {tmp_path / 'out'}: expected a folder that no other run writes, got one that is being "
        "written; wait for that run, or take another folder"
    )


def test_labels_have_no_place_in_safetensors(classifier, job, jsonl, tmp_path):
    """That texts cannot be written is found before a row is answered; raw outputs can."""
    with raises(UnwritableError) as error:
        job(classifier, [jsonl(ROWS)], format="safetensors")

    assert str(error.value) == (
        "--format safetensors: expected numbers, got labels, which are texts; use npz, or --raw"
    )
    assert not (tmp_path / "out").exists()
    assert job(classifier, [jsonl(ROWS)], format="safetensors", raw=True).complete
