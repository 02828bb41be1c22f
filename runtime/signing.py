"""A bundle's signature, checked by the OpenSSF's model-signing tool; the extra `sign` brings it.

    python -m model_signing sign key BUNDLE --private_key PEM --signature FILE

https://github.com/sigstore/model-transparency
"""

import os
from pathlib import Path

import model_signing

from runtime.bundle import Bundle
from runtime.errors import IntegrityError, first_line
from runtime.textfiles import NotText, read_json, read_text


def check_signature(bundle: Bundle, signature: Path, public_key: Path) -> None:
    """Check every file of a bundle against what the owner of a key has signed.

    Args:
      bundle: whose directory was signed.
      signature: what the tool wrote.
      public_key: in PEM, of an elliptic curve.

    Raises:
      IntegrityError: it was signed with another key, or has other files; or the signature or the
        key is no such file.
    """
    _expect_json(signature)
    _expect_public_key(public_key)
    # The tool takes a relative path for one below the bundle, which it need not be.
    root, file = (Path(os.path.abspath(path)) for path in (bundle.path, signature))
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=[file])
    verifying = model_signing.verifying.Config().set_hashing_config(hashing)
    try:
        verifying.use_elliptic_key_verifier(public_key=public_key).verify(root, file)
    except Exception as error:
        # The tool raises whatever its parsers do; none of it says that all is well.
        raise IntegrityError(
            f"bundle {bundle.path}: its signature {signature} does not hold: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _expect_json(signature: Path) -> None:
    try:
        read_json(read_text(signature))
    except NotText as error:
        raise IntegrityError(
            f"signature {signature}: expected the JSON that model-signing wrote, got {error}"
        ) from None


def _expect_public_key(file: Path) -> None:
    try:
        text = read_text(file)
        got = ""
        if "PRIVATE KEY-----" in text:
            got = "a private key"
        elif "-----BEGIN PUBLIC KEY-----" not in text:
            got = "a text file without BEGIN PUBLIC KEY"
        elif not file.read_bytes().isascii():
            got = "one with a byte order mark or other text; save it as plain ASCII"
    except NotText as error:
        got = str(error)
    if got:
        raise IntegrityError(f"public key {file}: expected one in PEM, got {got}")
