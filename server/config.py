"""Server configuration: the fields, defaults and validation; `options` parses it."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from runtime.localpaths import url_of, why_not_written
from runtime.records.predictions import Nonfinite
from runtime.storage import uri
from server.cpu_limits import cores_here, share
from server.limits import BodyLimits, Limits
from server.request_target import encode_path, is_canonical

# The memory budget, as a number of bodies of the maximum size.
_MEMORY_BODIES = 8
# 23 days, the longest time that gRPC's C core can represent in milliseconds.
_MAX_AGE_S = 2_000_000
_INDEX = re.compile(r"0|[1-9][0-9]{0,3}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# The number of processes that is decided when the server starts; see `processes.count`.
AUTO = -1
ANY_ORIGIN = "*"
# As browsers send an origin: in lower case, and without the scheme's default port.
_HOST = r"(?:[a-z0-9._~-]+|\[[0-9a-f:.]+\])"
_ORIGIN = re.compile(
    rf"(?!http://{_HOST}:80$|https://{_HOST}:443$)[a-z][a-z0-9+.-]*://{_HOST}(?::[1-9][0-9]{{0,4}})?"
)
# Directory of the bundle in an image that was built with one.
BAKED_IN = "/bundle"


class ConfigError(Exception):
    """A flag or environment variable is invalid; the message names it."""


def _option(
    default: Any, unit: str, help_: str, *, also: str | tuple[str, ...] = (), shown: str = ""
) -> Any:
    """Return a dataclass field that is an option.

    Args:
      default: default of the field.
      unit: placeholder of its value in the help.
      help_: description, without a full stop.
      also: further environment variables, in this order of precedence after its own.
      shown: the default as the help shows it.
    """
    others = (also,) if isinstance(also, str) else also
    metadata = {"unit": unit, "help": help_, "also": others, "shown": shown}
    return dataclasses.field(default=default, metadata=metadata)


CHOICES = {
    "golden": ("fail", "warn"),
    "grpc_front": ("aio", "ngh2"),
    "log_format": ("text", "json"),
    "nonfinite": ("null", "error", "string"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The configuration. The names of AIP_* variables are Vertex AI's."""

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
        "directory that caches downloads from gs://, compiled programs and what checks found",
        shown="none",
    )
    executables: str = _option(
        "",
        "DIR",
        "directory of compiled programs, as `python -m runtime compile` leaves it",
        shown="those of the image, where there are any",
    )
    executables_digest: str = _option(
        "",
        "sha256:HEX",
        "digest of the list of compiled programs, as `python -m runtime compile` prints it",
        shown="none",
    )
    require_digest: str = _option(
        "",
        "sha256:HEX",
        "digest of the only bundle to serve; without it, a bundle is first opened in a separate process",
        shown="any",
    )
    device: str = _option(
        "", "NAME", "device that programs run on: cpu, cuda, cuda:1", shown="JAX's choice"
    )
    devices: str = _option(
        "",
        "all|N[,N]",
        "devices of the host that run batches of one queue: all of its kind, or their indexes",
        shown="one",
    )
    processes: int = _option(
        AUTO,
        "N",
        "worker processes that share the ports, each with its own copy of the model, on a CPU only; auto: as many as gain here",
        shown="auto",
    )
    host: str = _option("0.0.0.0", "ADDRESS", "address to listen on, HTTP and gRPC")  # noqa: S104 (a container must)
    port: int = _option(
        8080, "PORT", "HTTP port; 0 for any free port", also=("AIP_HTTP_PORT", "PORT")
    )
    grpc_port: int = _option(8001, "PORT", "gRPC port; 0 for any free port, -1 for no gRPC")
    predict_route: str = _option(
        "/predict", "PATH", "path of predictions", also="AIP_PREDICT_ROUTE"
    )
    health_route: str = _option(
        "/health", "PATH", "path of the health check", also="AIP_HEALTH_ROUTE"
    )
    cors_origin: str = _option(
        "",
        "URL[,URL]",
        "origins whose pages may send requests and read responses, such as https://app.example; * for all",
        shown="none",
    )
    max_queue_delay_ms: float = _option(
        0.0,
        "MS",
        "maximum time a request waits for others to share its batch while the device is free",
    )
    max_queue_rows: int = _option(4096, "ROWS", "maximum rows in the queue; beyond, 503")
    max_request_rows: int = _option(1024, "ROWS", "maximum rows of a request; beyond, 413")
    request_timeout_ms: float = _option(
        60_000.0, "MS", "maximum time of a request; beyond, 504. A request may ask for less"
    )
    max_body_bytes: int = _option(
        64 * 1024 * 1024,
        "BYTES",
        "maximum size of a binary body or gRPC message, decompressed; beyond, 413",
        shown="67108864, 64 MiB",
    )
    max_json_bytes: int = _option(
        16 * 1024 * 1024,
        "BYTES",
        "maximum size of a JSON body, decompressed; at most the above",
        shown="16777216, 16 MiB",
    )
    grpc_max_connection_age_s: float = _option(
        0.0,
        "SECONDS",
        "age at which a gRPC connection is closed, after its calls, so that clients reach servers that were added",
        shown="none",
    )
    grpc_front: str = _option(
        "aio",
        "",
        "library that gRPC is served with: aio, of grpcio, or ngh2, on libnghttp2, which answers more calls",
    )
    golden: str = _option(
        "fail", "", "action when a golden check fails on this device: exit or warn"
    )
    nonfinite: Nonfinite = _option(  # noqa: RUF009 (a field, as the others)
        "null",
        "",
        "JSON for NaN, and for infinity that the bundle does not declare: null, an error 500, or a string",
    )
    device_timeout_s: float = _option(
        120.0,
        "SECONDS",
        "maximum time of a batch; beyond, the device counts as hung and the process exits",
    )
    drain_delay_s: float = _option(
        5.0, "SECONDS", "after SIGTERM, how long to keep serving while not ready"
    )
    drain_timeout_s: float = _option(
        25.0, "SECONDS", "after that, how long to wait for accepted requests to finish"
    )
    log_format: str = _option("text", "", "format of log lines: text, or JSON for Cloud Logging")
    trace_project: str = _option(
        "",
        "ID",
        "Google Cloud project of the traces that JSON log lines name",
        also="GOOGLE_CLOUD_PROJECT",
        shown="none",
    )
    metrics: bool = _option(True, "", "disable /metrics, for Prometheus")
    page: bool = _option(True, "", "disable the page at / that shows what is served")
    reflection: bool = _option(
        True, "", "disable gRPC reflection, which lists services and messages"
    )

    @property
    def remote(self) -> bool:
        """Whether the bundle has to be downloaded."""
        return not isinstance(uri.locate(self.bundle), Path)

    @property
    def shares_ports(self) -> bool:
        """Whether several processes listen on the ports, or may."""
        return self.processes != 1

    @property
    def limits(self) -> Limits:
        """Return the limits of the service."""
        return Limits(
            queue_rows=self.max_queue_rows,
            request_rows=self.max_request_rows,
            memory_bytes=_MEMORY_BODIES * self.max_body_bytes,
            queue_delay_s=self.max_queue_delay_ms / 1e3,
            timeout_s=self.request_timeout_ms / 1e3,
            stall_s=self.device_timeout_s,
            nonfinite=self.nonfinite,
            preparation_threads=share(max(1, self.processes), cores_here()),
        )

    @property
    def bodies(self) -> BodyLimits:
        """Return the limits of bodies."""
        return BodyLimits(min(self.max_json_bytes, self.max_body_bytes), self.max_body_bytes)

    @property
    def origins(self) -> tuple[str, ...]:
        """Return the origins whose pages may read responses."""
        return tuple(filter(None, (origin.strip() for origin in self.cors_origin.split(","))))

    def __str__(self) -> str:
        """Return the options that differ from their defaults as name=value."""
        fields = dataclasses.fields(self)
        values = [(field.name, getattr(self, field.name), field.default) for field in fields]
        return ", ".join(f"{name}={value!r}" for name, value, usual in values if value != usual)

    def __post_init__(self) -> None:
        """Validate the values.

        Raises:
          ConfigError: with the option, what is expected and what it has.
        """
        if not self.bundle:
            raise ConfigError("bundle: expected a directory, got none; pass --bundle DIR")
        self._check_paths()
        self._check_devices()
        if self.require_digest and not _DIGEST.fullmatch(self.require_digest):
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

    def _check_paths(self) -> None:
        try:
            uri.locate(self.bundle)
        except ValueError as error:
            raise ConfigError(f"bundle: {error}") from None
        if "://" not in self.bundle and (url := url_of(self.bundle)):
            meant = f"; did you mean {url!r}?" if url.startswith(("gs://", "file://")) else ""
            raise ConfigError(
                f"bundle: expected a directory, gs:// or file://, got {self.bundle!r}{meant}"
            )
        if bool(self.executables) != bool(self.executables_digest):
            raise ConfigError(
                "executables, executables_digest: expected both, or neither, got one: compiled programs "
                "are code, and are loaded only where their digest is given"
            )
        if self.executables_digest and not _DIGEST.fullmatch(self.executables_digest):
            raise ConfigError(
                "executables_digest: expected sha256: and the 64 hex digits that python -m runtime "
                f"compile prints, got {self.executables_digest!r}"
            )
        if reason := why_not_written(self.cache_dir):
            raise ConfigError(f"cache_dir: {reason.partition(';')[0]}")

    def _check_devices(self) -> None:
        if not self.devices or self.devices == "all":
            return
        indexes = self.devices.split(",")
        if not all(_INDEX.fullmatch(index) for index in indexes):
            raise ConfigError(
                f"devices: expected all, or indexes such as 0,1, got {self.devices!r}"
            )
        if len(set(indexes)) < len(indexes):
            raise ConfigError(f"devices: expected each index once, got {self.devices!r}")
        if ":" in self.device:
            raise ConfigError(
                f"device and devices: expected one of them to have an index, got {self.device!r} and "
                f"{self.devices!r}"
            )

    def _check_numbers(self) -> None:
        for name in (
            "processes",
            "max_body_bytes",
            "max_json_bytes",
            "max_queue_rows",
            "max_request_rows",
        ):
            if getattr(self, name) < 1 and (name, getattr(self, name)) != ("processes", AUTO):
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("max_queue_delay_ms", "drain_delay_s", "drain_timeout_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 <= self.grpc_max_connection_age_s <= _MAX_AGE_S:
            raise ConfigError(
                f"grpc_max_connection_age_s: expected 0 to {_MAX_AGE_S}, got "
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
            if not is_canonical(encode_path(route)):
                raise ConfigError(
                    f"{name}: expected a path without '//', '/./' and '/../', got {route!r}"
                )
        if self.predict_route == self.health_route:
            raise ConfigError(
                f"predict_route and health_route: expected two paths, got {self.predict_route!r} twice"
            )

    def _check_origins(self) -> None:
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin) and self.origins != (ANY_ORIGIN,):
                raise ConfigError(
                    "cors_origin: expected origins as browsers write them, such as "
                    f"https://app.example, or * alone, got {origin!r}"
                )
