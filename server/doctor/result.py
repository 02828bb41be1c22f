"""Timeouts of the doctor's checks, and their results."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long Vertex waits, in seconds.

    Attributes:
      liveness: four tries to connect, ten seconds apart.
      health: for an answer of the health route.
      start: until the health route answers 200; a deployment may allow up to two hours.
      predict: for an answer of the predict route.
      grace: from SIGTERM to SIGKILL. What Vertex grants is not documented.
    """

    liveness: float = 40.0
    health: float = 10.0
    start: float = 600.0
    predict: float = 60.0
    grace: float = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of a check.

    Attributes:
      check: what was looked at.
      ok: whether Vertex would be content.
      observed: what was seen.
      consequence: what Vertex would have done, where it would not.
    """

    check: str
    ok: bool
    observed: str
    consequence: str
