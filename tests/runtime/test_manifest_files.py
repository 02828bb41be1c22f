"""The files that a manifest names: below it, each once, with a digest."""

import json

from pytest import mark

from tests.runtime.test_manifest import changed, refusal


@mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "a/../b", "a//b", "./a", ".hidden", "a/.b", "a\\b", "a b", "", "a\n"],
)
def test_path_cannot_leave_the_bundle(value, path):
    """
    Absolute paths, dot segments and anything but plain names are refused.
    """
    broken = changed(value, ("programs", 0, "exported", "path"), path)

    assert refusal(json.dumps(broken).encode()) == (
        f"manifest.json: expected a plain relative path, got {path!r} "
        "at $.programs[0].exported.path"
    )


def test_manifest_cannot_be_one_of_its_files(value):
    """
    The manifest does not name itself.
    """
    broken = changed(value, ("goldens", 0, "file", "path"), "manifest.json")

    assert refusal(json.dumps(broken).encode()) == (
        "manifest.json: expected a plain relative path, got 'manifest.json' "
        "at $.goldens[0].file.path"
    )


def test_file_belongs_to_one_place(value):
    """
    Two entries cannot share a file.
    """
    broken = changed(
        value, ("programs", 0, "exported", "path"), value["programs"][0]["stablehlo"]["path"]
    )

    assert refusal(json.dumps(broken).encode()) == (
        "manifest.json: expected each name once, got 'programs/b1-seq2.stablehlo' twice at $"
    )


@mark.parametrize("digest", ["", "0" * 63, "G" * 64, "A" * 64, "0" * 64 + "\n"])
def test_digest_is_64_lower_case_hex_digits(value, digest):
    """
    Anything else cannot be the SHA-256 of a file.
    """
    broken = changed(value, ("params", "files", 0, "sha256"), digest)

    assert refusal(json.dumps(broken).encode()) == (
        "manifest.json: expected 64 hex digits at $.params.files[0].sha256"
    )
