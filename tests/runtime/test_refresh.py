"""`python -m runtime refresh`: a bundle made new from its StableHLO alone."""

import json

import jax
import numpy as np
from pytest import fixture, raises

from runtime import GoldenMismatch, IncompatibleProgram, ManifestError, load, open_bundle
from runtime.__main__ import main
from runtime.promises import compatibility_windows
from runtime.refresh import refresh
from tests.altered_bundles import altered, with_expired_programs, with_other_golden


@fixture(scope="session")
def old_bundle(tagger_bundle, tmp_path_factory):
    """The tagger as another, older jax would have left it."""
    expired = with_expired_programs(tagger_bundle, tmp_path_factory.mktemp("old") / "bundle")
    older = {"manifest.json": lambda m: m["exporter"].update(jax="0.11.2", jaxlib="0.11.2")}
    return altered(expired, tmp_path_factory.mktemp("older") / "bundle", older)


@fixture(scope="session")
def fresh_bundle(old_bundle, tmp_path_factory):
    """What refreshing makes of it."""
    out = tmp_path_factory.mktemp("fresh") / "bundle"
    refresh(open_bundle(old_bundle), out, "cpu")
    return out


def test_programs_are_those_of_this_jax(fresh_bundle, tagger_bundle):
    """
    A wrapper made from StableHLO is byte for byte what exporting writes.
    """
    programs = sorted((tagger_bundle / "programs").iterdir())

    assert len(programs) == 8
    for program in programs:
        assert (fresh_bundle / "programs" / program.name).read_bytes() == program.read_bytes()


def test_refreshed_bundle_loads_from_its_wrappers(fresh_bundle, old_bundle):
    """
    What needed the StableHLO before needs it no more, and answers the same.
    """
    old, fresh = load(old_bundle, "cpu"), load(fresh_bundle, "cpu")
    ids = {"ids": np.array([[1, 2, 3]], np.int32)}

    assert all(p.fallback for group in old.groups.values() for p in group.programs.values())
    assert not any(p.fallback for group in fresh.groups.values() for p in group.programs.values())
    np.testing.assert_array_equal(fresh.predict(ids)["scores"], old.predict(ids)["scores"])


def test_origin_is_recorded(fresh_bundle, old_bundle):
    """
    The manifest has its origin, the writer of that, and its own writer.
    """
    old, fresh = open_bundle(old_bundle), open_bundle(fresh_bundle)

    (origin,) = fresh.manifest.refreshed_from
    assert (origin.sha256, origin.exporter) == (old.digest, old.manifest.exporter)
    assert fresh.manifest.exporter["jax"] == jax.__version__
    assert fresh.manifest.exporter["flax"] == old.manifest.exporter["flax"]
    assert fresh.manifest.created == old.manifest.created
    assert fresh.manifest.verified == ("cpu",)


def test_everything_else_stays(fresh_bundle, old_bundle):
    """
    Params, goldens, StableHLO and the manifest's description of the model are unchanged.
    """
    old, fresh = (
        json.loads((b / "manifest.json").read_bytes()) for b in (old_bundle, fresh_bundle)
    )
    new = {"format_version", "exporter", "refreshed_from", "verified"}

    for entries in (old["programs"], fresh["programs"]):
        for entry in entries:
            del entry["exported"]
    assert set(fresh) - set(old) == {"refreshed_from"}
    assert {k: v for k, v in fresh.items() if k not in new} == {
        k: v for k, v in old.items() if k not in new
    }


def test_refreshing_twice_gives_the_same_bytes(fresh_bundle, old_bundle, tmp_path):
    """
    The same versions write the same bundle.
    """
    refresh(open_bundle(old_bundle), tmp_path / "again", "cpu")

    assert open_bundle(tmp_path / "again").digest == open_bundle(fresh_bundle).digest


def test_refreshing_again_keeps_the_first_export(fresh_bundle, old_bundle, tmp_path):
    """
    Each refreshing adds an origin; StableHLO's promise counts from the first.
    """
    manifest = refresh(open_bundle(fresh_bundle), tmp_path / "again", "cpu")

    assert [origin.sha256 for origin in manifest.refreshed_from] == [
        open_bundle(old_bundle).digest,
        open_bundle(fresh_bundle).digest,
    ]
    assert compatibility_windows(manifest)[1].writer == "0.11.2"


def test_a_bundle_that_was_not_verified_gets_its_drift(classifier_bundle, tmp_path):
    """
    What an export on a machine without the device could not measure is measured now.
    """
    unverified = {"manifest.json": lambda m: m.update(verified=[], drift={})}
    bundle = altered(classifier_bundle, tmp_path / "old", unverified)

    manifest = refresh(open_bundle(bundle), tmp_path / "new", "cpu")

    assert manifest.verified == ("cpu",)
    assert manifest.drift.keys() == {"output"}


def test_bundle_that_does_not_answer_is_not_written(classifier_bundle, tmp_path):
    """
    Where a golden does not match, nothing is left behind.
    """
    wrong = with_other_golden(classifier_bundle, tmp_path / "wrong")
    out = tmp_path / "out" / "fresh"

    with raises(GoldenMismatch, match=r"^\d+ golden checks failed on cpu, first: .*was written$"):
        refresh(open_bundle(wrong), out, "cpu")

    assert not out.parent.exists()


def test_bundle_for_another_platform_is_not_refreshed_here(cuda_bundle, tmp_path):
    """
    What cannot be proven on this machine is not written on it.
    """
    with raises(IncompatibleProgram, match="needs platform cuda, this device is cpu"):
        refresh(open_bundle(cuda_bundle), tmp_path / "fresh", "cpu")

    assert list(tmp_path.iterdir()) == []


def test_unreadable_stablehlo_names_the_file(classifier_bundle, tmp_path):
    """
    StableHLO that this jax does not read is an error that names the file.
    """
    cut = {"programs/b2.stablehlo": lambda data: data[:99]}

    with raises(IncompatibleProgram) as caught:
        refresh(
            open_bundle(altered(classifier_bundle, tmp_path / "b", cut)), tmp_path / "out", "cpu"
        )

    assert str(caught.value) == (
        "programs/b2.stablehlo: INVALID_ARGUMENT: Failed to deserialize StableHLO; re-export the "
        "model with a jax near this one"
    )


def test_sizes_that_no_jax_takes_are_refused(classifier_bundle, tmp_path):
    """
    Sizes in a manifest that are impossible are an error that names them, and never a crash.
    """
    huge = {"manifest.json": lambda m: m["signature"]["inputs"][0].update(shape=["_", 10**19])}
    bundle = altered(classifier_bundle, tmp_path / "b", huge)

    with raises(ManifestError, match=r"^manifest\.json: expected more than the \d+ bytes of its"):
        refresh(open_bundle(bundle), tmp_path / "out", "cpu")


def test_command_says_what_it_did(old_bundle, tmp_path, capsys):
    """
    The command prints one line: from where to where, and between which versions.
    """
    out = tmp_path / "fresh"

    assert main(["refresh", str(old_bundle), "--out", str(out), "--device", "cpu"]) == 0

    assert capsys.readouterr().out == (
        f"refreshed {old_bundle} into {out}: jax 0.11.2 to {jax.__version__}, verified on cpu\n"
    )


def test_command_leaves_what_is_there(classifier_bundle, capsys):
    """
    An existing bundle is not replaced without the option.
    """
    assert main(["refresh", str(classifier_bundle), "--out", str(classifier_bundle)]) == 3

    assert capsys.readouterr().err == (
        f"error: bundle {classifier_bundle}: exists; pass --overwrite to replace it\n"
    )


def test_new_bundle_is_not_written_into_the_old_one(classifier_bundle, capsys):
    """
    Files of a bundle that its manifest does not name are none of its own, a bundle neither.
    """
    inside = classifier_bundle / "new"

    assert main(["refresh", str(classifier_bundle), "--out", str(inside)]) == 3

    assert capsys.readouterr().err == (
        f"error: bundle {inside}: expected a directory apart from {classifier_bundle}, got one in it\n"
    )
    assert not inside.exists()


def test_command_ends_with_4_where_goldens_fail(classifier_bundle, tmp_path, capsys):
    """
    A golden that does not match has the same exit status as in verify.
    """
    wrong = with_other_golden(classifier_bundle, tmp_path / "wrong")

    assert main(["refresh", str(wrong), "--out", str(tmp_path / "fresh")]) == 4

    assert "golden checks failed on cpu" in capsys.readouterr().err
