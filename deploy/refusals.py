"""What Google's SDK raises, as one line with the way out."""

import re

from google.api_core import exceptions
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

_LOG_IN = "run gcloud auth application-default login"


def explained(error: Exception, region: str) -> str:
    """Return what went wrong, and what to do.

    Args:
      error: of the SDK, or of the connection.
      region: that it was about.
    """
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if isinstance(error, DefaultCredentialsError):
        return f"expected credentials, got none; {_LOG_IN}"
    if isinstance(error, GoogleAuthError):
        return f"{said}; {_LOG_IN}"
    if isinstance(error, ValueError) and "region" in said:
        return f"--region: expected one that Vertex AI is in, got {region!r}"
    hint = _hint(error, said)
    return f"{said}; {hint}" if hint else said


def _hint(error: Exception, said: str) -> str:
    if isinstance(error, exceptions.Forbidden):
        return "docs/deploy-vertex.md lists the roles that this takes"
    if isinstance(error, exceptions.NotFound) and "bucket" in said:
        return "make it with gcloud storage buckets create"
    if isinstance(error, exceptions.TooManyRequests) or re.search("quota", said, re.IGNORECASE):
        return "ask for more of it, or take another --machine-type or --region"
    if isinstance(error, exceptions.RetryError | OSError):
        return "is the network there?"
    return ""
