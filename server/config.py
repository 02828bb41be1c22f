"""Everything the server can be told; `options` reads it."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from runtime.localpaths import url_of, why_not_written
from server import artifacts, body
from server.cors import ANY
from server.limits import Limits
from server.pending import Nonfinite
from server.target import is_canonical, spelt

# Of the largest, how many bodies may be under way at once.
_BODIES = 8
# What gRPC's C core can count, in milliseconds: 23 days.
_OLDEST_S = 2_000_000
# As browsers write an origin: in lower case, and without the port that goes without saying.
_HOST = r"(?:[a-z0-9._~-]+|\[[0-9a-f:.]+\])"
_ORIGIN = re.compile(
    rf"(?!http://{_HOST}:80$|https://{_HOST}:443$)[a-z][a-z0-9+.-]*://{_HOST}(?::[1-9][0-9]{{0,4}})?"
)
# Where an image has its bundle, if one was baked in.
BAKED_IN = "/bundle"


class ConfigError(Exception):
    """A flag or environment variable does not read; the message names it."""


def _option(
    default: Any, unit: str, help_: str, *, also: str | tuple[str, ...] = (), shown: str = ""
) -> Any:
    """Make a field that is an option.

    Args:
      default: of the field.
      unit: of its value, as the help's placeholder.
      help_: a sentence without its full stop.
      also: other variables that it is read from, in this order, if its own is not set.
      shown: what a person is told of the default.
    """
    others = (also,) if isinstance(also, str) else also
    metadata = {"unit": unit, "help": help_, "also": others, "shown": shown}
    return dataclasses.field(default=default, metadata=metadata)


CHOICES = {
    "golden": ("fail", "warn"),
    "log_format": ("text", "json"),
    "nonfinite": ("null", "error", "string"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What the server is told. The names of AIP_* variables are Vertex AI's."""

    bundle: str = _option(
        "",
        "DIR",
        "the bundle: a directory, gs://BUCKET/FOLDER or file:///PATH",
        also="AIP_STORAGE_URI",
        shown=f"{BAKED_IN}, where there is one",
    )
    cache_dir: str = _option(
        "",
        "DIR",
        "directory that keeps, for the next start, what gs:// gave and which bundles opened well",
        shown="none",
    )
    require_digest: str = _option(
        "",
        "sha256:HEX",
        "the only bundle to serve; it is opened at once, others in a process of their own first",
        shown="any",
    )
    device: str = _option(
        "", "NAME", "what programs run on: cpu, cuda, cuda:1", shown="JAX's choice"
    )
    processes: int = _option(
        1,
        "N",
        "processes that share the ports, each with its own copy of the model; on a CPU alone",
        shown="1",
    )
    host: str = _option("0.0.0.0", "ADDRESS", "address to listen on, HTTP and gRPC")  # noqa: S104 (a container must)
    port: int = _option(
        8080, "PORT", "HTTP port; 0 takes a free one", also=("AIP_HTTP_PORT", "PORT")
    )
    grpc_port: int = _option(8001, "PORT", "gRPC port; 0 takes a free one, -1 none")
    predict_route: str = _option(
        "/predict", "PATH", "path of predictions", also="AIP_PREDICT_ROUTE"
    )
    health_route: str = _option(
        "/health", "PATH", "path of the health check", also="AIP_HEALTH_ROUTE"
    )
    cors_origin: str = _option(
        "",
        "URL[,URL]",
        "origins whose pages may ask and read, such as https://app.example; * for all",
        shown="none",
    )
    max_queue_delay_ms: float = _option(
        0.0, "MS", "longest that rows wait for company while the device is free"
    )
    max_queue_rows: int = _option(4096, "ROWS", "rows that may wait; beyond, 503")
    max_request_rows: int = _option(1024, "ROWS", "rows of one request; beyond, 413")
    request_timeout_ms: float = _option(
        60_000.0, "MS", "longest that a request takes; beyond, 504. It may ask for less itself"
    )
    max_body_bytes: int = _option(
        64 * 1024 * 1024,
        "BYTES",
        "largest binary body or gRPC message, decompressed; beyond, 413",
        shown="67108864, 64 MiB",
    )
    max_json_bytes: int = _option(
        16 * 1024 * 1024,
        "BYTES",
        "largest JSON body, decompressed, and never more than the above",
        shown="16777216, 16 MiB",
    )
    grpc_max_connection_age_s: float = _option(
        0.0,
        "SECONDS",
        "age at which a gRPC connection is closed once its calls are answered, so that clients "
        "spread over the servers anew",
        shown="none",
    )
    golden: str = _option(
        "fail", "", "what a golden that this device does not reproduce does: end it, or warn"
    )
    nonfinite: Nonfinite = _option(  # noqa: RUF009 (a field, as the others)
        "null",
        "",
        "what JSON has for NaN, and for infinity that the bundle does not declare: null, an error 500, or a string",
    )
    device_timeout_s: float = _option(
        120.0, "SECONDS", "a batch that takes longer ends the process: the device hangs"
    )
    drain_delay_s: float = _option(
        5.0, "SECONDS", "after SIGTERM, how long to answer on, not ready any more"
    )
    drain_timeout_s: float = _option(
        25.0, "SECONDS", "then, how long what is in may take before it is refused"
    )
    log_format: str = _option("text", "", "log lines for a person, or as JSON for Cloud Logging")
    trace_project: str = _option(
        "",
        "ID",
        "Google Cloud project of the traces that JSON log lines name",
        also="GOOGLE_CLOUD_PROJECT",
        shown="none",
    )
    metrics: bool = _option(True, "", "leave out /metrics, which Prometheus reads")
    page: bool = _option(True, "", "leave out the page at / that shows what is served")
    reflection: bool = _option(
        True, "", "leave out gRPC's reflection, which shows its services and their messages"
    )

    @property
    def remote(self) -> bool:
        """Say whether the bundle has to be fetched."""
        return not isinstance(artifacts.locate(self.bundle), Path)

    @property
    def limits(self) -> Limits:
        """Give what the service takes on."""
        return Limits(
            queue_rows=self.max_queue_rows,
            request_rows=self.max_request_rows,
            held_bytes=_BODIES * self.max_body_bytes,
            queue_delay_s=self.max_queue_delay_ms / 1e3,
            timeout_s=self.request_timeout_ms / 1e3,
            stall_s=self.device_timeout_s,
            nonfinite=self.nonfinite,
        )

    @property
    def bodies(self) -> body.Limits:
        """Give the limits of bodies."""
        return body.Limits(min(self.max_json_bytes, self.max_body_bytes), self.max_body_bytes)

    @property
    def origins(self) -> tuple[str, ...]:
        """Give the origins whose pages may read answers."""
        return tuple(filter(None, (origin.strip() for origin in self.cors_origin.split(","))))

    def __str__(self) -> str:
        """Write every option as name=value."""
        return ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(self).items())

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
          ConfigError: names the option, what it takes and what it got.
        """
        if not self.bundle:
            raise ConfigError("bundle: expected a directory, got none; pass --bundle DIR")
        self._check_places()
        if self.require_digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", self.require_digest):
            raise ConfigError(
                "require_digest: expected sha256: and the 64 hex digits that python -m runtime "
                f"inspect shows, got {self.require_digest!r}"
            )
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: expected 0 to 65535, got {self.port}")
        if not -1 <= self.grpc_port <= 65535:
            raise ConfigError(f"grpc_port: expected -1 to 65535, got {self.grpc_port}")
        if self.port == self.grpc_port != 0:
            raise ConfigError(
                f"port and grpc_port: expected two ports, got {self.port} twice; pass another "
                "--grpc-port, or -1 for none"
            )
        self._check_numbers()
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                expected = f"{', '.join(known[:-1])} or {known[-1]}"
                raise ConfigError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        self._check_routes()
        self._check_origins()

    def _check_places(self) -> None:
        try:
            artifacts.locate(self.bundle)
        except ValueError as error:
            raise ConfigError(f"bundle: {error}") from None
        if "://" not in self.bundle and (url := url_of(self.bundle)):
            meant = f"; did you mean {url!r}?" if url.startswith(("gs://", "file://")) else ""
            raise ConfigError(
                f"bundle: expected a directory, gs:// or file://, got {self.bundle!r}{meant}"
            )
        if reason := why_not_written(self.cache_dir):
            raise ConfigError(f"cache_dir: {reason.partition(';')[0]}")

    def _check_numbers(self) -> None:
        for name in (
            "processes",
            "max_body_bytes",
            "max_json_bytes",
            "max_queue_rows",
            "max_request_rows",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("max_queue_delay_ms", "drain_delay_s", "drain_timeout_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 <= self.grpc_max_connection_age_s <= _OLDEST_S:
            raise ConfigError(
                f"grpc_max_connection_age_s: expected 0 to {_OLDEST_S}, got "
                f"{self.grpc_max_connection_age_s}"
            )
        for name in ("request_timeout_ms", "device_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected more than 0, got {getattr(self, name)}")

    def _check_routes(self) -> None:
        for name in ("predict_route", "health_route"):
            route = getattr(self, name)
            if not route.startswith("/") or any(c in route for c in "<>?# "):
                raise ConfigError(
                    f"{name}: expected a path that begins with '/' and has none of '<>?# ', "
                    f"got {route!r}"
                )
            if not is_canonical(spelt(route)):
                raise ConfigError(
                    f"{name}: expected a path without '//', '/./' and '/../', got {route!r}"
                )
        if self.predict_route == self.health_route:
            raise ConfigError(
                f"predict_route and health_route: expected two paths, got {self.predict_route!r} twice"
            )

    def _check_origins(self) -> None:
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin) and self.origins != (ANY,):
                raise ConfigError(
                    "cors_origin: expected origins as browsers write them, such as "
                    f"https://app.example, or * alone, got {origin!r}"
                )
