"""Everything the server can be told: flag, else environment variable, else default."""

import argparse
import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from server import body, service
from server.pending import Nonfinite


class ConfigError(Exception):
    """A flag or environment variable does not read; the message names it."""


def _option(default: Any, help_: str, *, env: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_, "env": env})


_CHOICES = {
    "golden": ("fail", "warn"),
    "log_format": ("text", "json"),
    "nonfinite": ("null", "error", "string"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What the server is told. The names of AIP_* variables are Vertex AI's."""

    bundle: str = _option("", "Bundle directory.", env="AIP_STORAGE_URI")
    host: str = _option("0.0.0.0", "Address to listen on.", env="HLOSERVE_HOST")  # noqa: S104 (a container must)
    port: int = _option(8080, "HTTP port; 0 takes a free one.", env="AIP_HTTP_PORT")
    grpc_port: int = _option(
        8001, "gRPC port; 0 takes a free one, -1 none.", env="HLOSERVE_GRPC_PORT"
    )
    predict_route: str = _option("/predict", "Path of predictions.", env="AIP_PREDICT_ROUTE")
    health_route: str = _option("/health", "Path of the health check.", env="AIP_HEALTH_ROUTE")
    device: str = _option("", "cpu, cuda, cuda:1; empty for JAX's default.", env="HLOSERVE_DEVICE")
    max_queue_delay_ms: float = _option(
        0.0,
        "Longest a task waits for company while the device is free.",
        env="HLOSERVE_MAX_QUEUE_DELAY_MS",
    )
    max_queue_rows: int = _option(4096, "Rows that may wait.", env="HLOSERVE_MAX_QUEUE_ROWS")
    max_request_rows: int = _option(1024, "Rows of one request.", env="HLOSERVE_MAX_REQUEST_ROWS")
    request_timeout_ms: float = _option(
        60_000.0, "Longest a request takes.", env="HLOSERVE_REQUEST_TIMEOUT_MS"
    )
    max_body_bytes: int = _option(
        64 * 1024 * 1024, "Largest binary body, decompressed.", env="HLOSERVE_MAX_BODY_BYTES"
    )
    max_json_bytes: int = _option(
        16 * 1024 * 1024,
        "Largest JSON body, decompressed; never more than the above.",
        env="HLOSERVE_MAX_JSON_BYTES",
    )
    golden: str = _option(
        "fail", "What a golden mismatch at start does: fail or warn.", env="HLOSERVE_GOLDEN"
    )
    device_timeout_s: float = _option(
        120.0,
        "A batch that takes longer ends the process: the device hangs.",
        env="HLOSERVE_DEVICE_TIMEOUT_S",
    )
    drain_delay_s: float = _option(
        5.0,
        "After SIGTERM, how long to go on accepting requests.",
        env="HLOSERVE_DRAIN_DELAY_S",
    )
    drain_timeout_s: float = _option(
        25.0,
        "Then, how long what is in may take before it is refused.",
        env="HLOSERVE_DRAIN_TIMEOUT_S",
    )
    page: bool = _option(
        True, "Leave out the page at / that shows what is served.", env="HLOSERVE_PAGE"
    )
    log_format: str = _option("text", "Log lines: text or json.", env="HLOSERVE_LOG_FORMAT")
    nonfinite: Nonfinite = _option(  # noqa: RUF009 (a field, as the others)
        "null", "What JSON has for NaN: null, error or string.", env="HLOSERVE_NONFINITE"
    )

    @property
    def limits(self) -> service.Limits:
        """Give what the service takes on."""
        return service.Limits(
            queue_rows=self.max_queue_rows,
            request_rows=self.max_request_rows,
            queue_delay_s=self.max_queue_delay_ms / 1e3,
            timeout_s=self.request_timeout_ms / 1e3,
            stall_s=self.device_timeout_s,
            nonfinite=self.nonfinite,
        )

    @property
    def bodies(self) -> body.Limits:
        """Give the limits of bodies."""
        return body.Limits(min(self.max_json_bytes, self.max_body_bytes), self.max_body_bytes)

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
          ConfigError: names the option, what it takes and what it got.
        """
        if not self.bundle:
            raise ConfigError("bundle: expected a directory, got none; pass --bundle DIR")
        if "://" in self.bundle:
            raise ConfigError(f"bundle: expected a local directory, got {self.bundle!r}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: expected 0 to 65535, got {self.port}")
        if not -1 <= self.grpc_port <= 65535:
            raise ConfigError(f"grpc_port: expected -1 to 65535, got {self.grpc_port}")
        self._check_numbers()
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                expected = f"{', '.join(known[:-1])} or {known[-1]}"
                raise ConfigError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        self._check_routes()

    def _check_numbers(self) -> None:
        for name in ("max_body_bytes", "max_json_bytes", "max_queue_rows", "max_request_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("max_queue_delay_ms", "drain_delay_s", "drain_timeout_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("request_timeout_ms", "device_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected more than 0, got {getattr(self, name)}")

    def _check_routes(self) -> None:
        for name in ("predict_route", "health_route"):
            route = getattr(self, name)
            if not route.startswith("/") or any(c in route for c in "<>?# "):
                raise ConfigError(f"{name}: expected a path that begins with '/', got {route!r}")
        if self.predict_route == self.health_route:
            raise ConfigError(
                f"predict_route and health_route: expected two paths, got {self.predict_route!r} twice"
            )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> ServerConfig:
    """Read the command line and the environment.

    Args:
      argv: without the program's name.
      environ: only the variables that `--help` names are looked at. An empty one counts
        as absent: Vertex sets AIP_STORAGE_URI to "" for a model without artifacts.

    Raises:
      ConfigError: names the flag or variable, what it takes and what it got.
    """
    parser = _Parser(
        prog="python -m server",
        description="Serve a bundle over HTTP.",
        allow_abbrev=False,
    )
    fields = dataclasses.fields(ServerConfig)
    for field in fields:
        text, env = field.metadata["help"], field.metadata["env"]
        if field.default is True:  # the flag switches it off
            shown = f"{text} [{env}=0]"
            parser.add_argument(
                _flag(field), dest=field.name, action="store_const", const="0", help=shown
            )
        else:
            shown = f"{text} [{env}; default: {field.default!r}]"
            parser.add_argument(_flag(field), dest=field.name, help=shown)
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        word = unknown[0].split("=")[0]
        close = difflib.get_close_matches(word, [_flag(f) for f in fields], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"{word}: no such option{hint}")
    values: dict[str, Any] = {}
    for field in fields:
        text, source = getattr(found, field.name), _flag(field)
        if text is None:
            text, source = environ.get(field.metadata["env"]) or None, field.metadata["env"]
        if text is not None:
            values[field.name] = _convert(text, type(field.default), source)
    return ServerConfig(**values)


def _flag(field: dataclasses.Field[Any]) -> str:
    return ("--no-" if field.default is True else "--") + field.name.replace("_", "-")


def _convert(text: str, kind: type, source: str) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text not in ("0", "1"):
            raise ConfigError(f"{source}: expected 0 or 1, got {text!r}")
        return text == "1"
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{source}: expected {expected}, got {text!r}") from None
