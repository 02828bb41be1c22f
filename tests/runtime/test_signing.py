"""Signatures of bundles, made and checked by the OpenSSF's model-signing tool."""

import importlib.util
import shutil
import subprocess
import sys

from pytest import fixture, mark

from runtime.__main__ import main
from tests.altered_bundles import FROZEN
from tests.keys import make_keys


@fixture(scope="module")
def signed(tmp_path_factory):
    """A signed bundle: bundle, signature, public key, and another public key."""
    folder = tmp_path_factory.mktemp("signed")
    bundle, signature = folder / "bundle", folder / "bundle.sig"
    shutil.copytree(FROZEN, bundle)
    private, public = make_keys(folder, "mine")
    _, other = make_keys(folder, "other")
    sign = ("-m", "model_signing", "sign", "key", bundle, "--private_key", private)
    subprocess.run([sys.executable, *sign, "--signature", signature], check=True)
    return bundle, signature, public, other


def inspect(bundle, signature, key):
    """Inspect a bundle with a signature; return the exit status."""
    return main(["inspect", str(bundle), "--signature", str(signature), "--public-key", str(key)])


@mark.e2e
def test_signed_bundle_is_taken(signed):
    """
    A bundle that the key's owner signed is inspected as any other.
    """
    bundle, signature, public, _ = signed

    assert inspect(bundle, signature, public) == 0


@mark.e2e
def test_signature_by_another_key_is_refused(signed, capsys):
    """
    A signature that another key made does not hold.
    """
    bundle, signature, _, other = signed

    assert inspect(bundle, signature, other) == 3
    assert capsys.readouterr().err.startswith(
        f"error: bundle {bundle}: its signature {signature} does not hold: "
    )


@mark.e2e
@mark.parametrize("file", ["manifest.json", "params.safetensors"])
def test_changed_bundle_is_refused(signed, tmp_path, capsys, file):
    """
    A file that is not what was signed is found, the manifest too.
    """
    bundle, signature, public, _ = signed
    changed = shutil.copytree(bundle, tmp_path / "changed")
    data = (changed / file).read_bytes()
    (changed / file).write_bytes(data.replace(b"mood", b"moot") if file[0] == "m" else data[::-1])

    assert inspect(changed, signature, public) == 3
    assert "does not hold: " in capsys.readouterr().err


@mark.e2e
def test_file_that_was_not_signed_is_refused(signed, tmp_path):
    """
    A bundle with a file more than was signed is not the one that was signed.
    """
    bundle, signature, public, _ = signed
    more = shutil.copytree(bundle, tmp_path / "more")
    (more / "extra.txt").write_text("more")

    assert inspect(more, signature, public) == 3


@mark.e2e
def test_signature_may_lie_in_the_bundle(signed, tmp_path):
    """
    The signature itself is not part of what was signed.
    """
    bundle, signature, public, _ = signed
    along = shutil.copytree(bundle, tmp_path / "along")
    shutil.copy(signature, along / "model.sig")

    assert inspect(along, along / "model.sig", public) == 0


@mark.e2e
def test_signature_in_the_bundle_may_be_named_from_where_one_is(signed, tmp_path, monkeypatch):
    """
    A relative path is one from the current directory, for the signature as for the bundle.
    """
    bundle, signature, public, _ = signed
    shutil.copytree(bundle, tmp_path / "along")
    shutil.copy(signature, tmp_path / "along" / "model.sig")
    monkeypatch.chdir(tmp_path)

    assert inspect("along", "along/model.sig", public) == 0


@mark.parametrize("absent", ["signature", "key"])
def test_signature_without_its_file_is_refused(signed, tmp_path, absent):
    """
    A signature or key that is not there holds nothing.
    """
    bundle, signature, public, _ = signed
    nothing = tmp_path / "nothing"

    if absent == "signature":
        assert inspect(bundle, nothing, public) == 3
    else:
        assert inspect(bundle, signature, nothing) == 3


@mark.parametrize("flag", ["--signature", "--public-key"])
def test_half_of_it_is_wrong_usage(capsys, flag):
    """
    A signature needs a key, and a key a signature.
    """
    assert main(["verify", str(FROZEN), flag, "file"]) == 2
    assert capsys.readouterr().err == (
        "error: --signature and --public-key: expected both, got one\n"
    )


def test_absent_tool_is_named(monkeypatch, capsys):
    """
    Without the extra the command names it.
    """
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    assert inspect(FROZEN, "signature", "key") == 2
    assert capsys.readouterr().err == (
        "error: --signature: needs model-signing, which is not installed; "
        "pip install 'hloserve[sign]'\n"
    )


@mark.parametrize(
    ("data", "got"),
    [
        (b"\xef\xbb\xbf", "one with a byte order mark or other text; save it as plain ASCII"),
        (b"\xff\xfe", "a byte order mark of UTF-16, and other bytes"),
        (None, "a directory"),
        (b"\0", "bytes with zeros: a binary file, or UTF-16 without a byte order mark"),
    ],
)
def test_a_key_that_is_no_key_is_not_blamed_on_the_bundle(signed, tmp_path, capsys, data, got):
    """
    A key that an editor saved in another encoding is named, not the signature.
    """
    bundle, signature, public, _ = signed
    key = tmp_path / "key.pem"
    if data is None:
        key.mkdir()
    else:
        key.write_bytes(data + public.read_bytes() + b"\n" * (public.stat().st_size % 2 == 0))

    assert inspect(bundle, signature, key) == 3
    assert capsys.readouterr().err == f"error: public key {key}: expected one in PEM, got {got}\n"


def test_a_private_key_is_not_taken_for_a_public_one(signed, tmp_path, capsys):
    """
    Neither key is mixed up with the other, nor with the signature.
    """
    bundle, signature, public, _ = signed
    private, _ = make_keys(tmp_path, "another")

    assert inspect(bundle, signature, private) == 3
    assert inspect(bundle, signature, signature) == 3
    assert inspect(bundle, public, public) == 3
    assert capsys.readouterr().err.splitlines() == [
        f"error: public key {private}: expected one in PEM, got a private key",
        f"error: public key {signature}: expected one in PEM, got a text file without BEGIN PUBLIC KEY",
        (
            f"error: signature {public}: expected the JSON that model-signing wrote, got Expecting "
            "value: line 1 column 1 (char 0)"
        ),
    ]
