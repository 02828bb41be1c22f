"""A bundle's signature, checked by the OpenSSF's model-signing tool; the extra `sign` brings it.

    python -m model_signing sign key BUNDLE --private_key PEM --signature FILE

https://github.com/sigstore/model-transparency
"""

import os
from pathlib import Path

import model_signing

from runtime.bundle import Bundle
from runtime.errors import IntegrityError, first_line


def check_signature(bundle: Bundle, signature: Path, public_key: Path) -> None:
    """Hold every file of a bundle against what the owner of a key has signed.

    Args:
      bundle: whose directory was signed.
      signature: what the tool wrote.
      public_key: in PEM, of an elliptic curve.

    Raises:
      IntegrityError: it was signed by somebody else, or has other files.
    """
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
