"""Command line and environment variables of the server, and its `--help`."""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, override

from runtime.commandline import Parser, add_version
from runtime.entries import MANIFEST_NAME
from runtime.invocation import spelled
from runtime.textfiles import NotText, read_text
from server.config import AUTO, BAKED_IN, CHOICES, ConfigError, ServerConfig

# Digest of the bundle that an image was built with, written by sha256sum.
DIGEST_FILE = Path(sys.prefix, "bundle.sha256")
# Programs that an image compiled while it was built, and their list.
EXECUTABLES, LIST = Path(sys.prefix, "executables"), "executables.sha256"

# The first field of each group in the help.
_GROUPS = {
    "bundle": "bundle and device",
    "host": "addresses",
    "max_queue_delay_ms": "batching and limits",
    "golden": "faults and proof",
    "drain_delay_s": "shutdown",
    "log_format": "logs and what is shown",
}


class Option(NamedTuple):
    """An option of the command line and the environment.

    Attributes:
      name: of its field in the configuration.
      group: heading in the help.
      flag: on the command line.
      unit: placeholder of its value; empty for a switch.
      variables: environment variables; the first that is set counts.
      default: the default as the help shows it.
      help: description.
    """

    name: str
    group: str
    flag: str
    unit: str
    variables: tuple[str, ...]
    default: str
    help: str

    @property
    def switch(self) -> bool:
        """Whether it takes no value, and disables what is enabled by default."""
        return self.flag.startswith("--no-")

    @property
    def repeats(self) -> bool:
        """Whether it may be passed several times; the variable is a list with commas."""
        return self.unit.endswith(f"[,{self.unit.partition('[')[0]}]")


def options() -> Iterator[Option]:
    """Yield every option in the order of the help."""
    group = ""
    for field in dataclasses.fields(ServerConfig):
        group = _GROUPS.get(field.name, group)
        metadata = field.metadata
        flag = ("--no-" if field.default is True else "--") + field.name.replace("_", "-")
        unit = metadata["unit"] or "|".join(CHOICES.get(field.name, ()))
        variables = (f"HLOSERVE_{field.name.upper()}", *metadata["also"])
        default = metadata["shown"] or _shown(field.default, unit)
        yield Option(field.name, group, flag, unit, variables, default, metadata["help"])


def _shown(default: Any, unit: str) -> str:
    if default is True:
        return "on"
    if isinstance(default, str):
        return default
    return f"{default:g}" if unit == "PORT" else f"{default:g} {unit.lower()}"


class _Lines(argparse.RawDescriptionHelpFormatter):
    """Wraps descriptions, and keeps the variables on a line of their own."""

    @override
    def _split_lines(self, text: str, width: int) -> list[str]:
        return [
            line
            for part in text.split("\n")
            for line in super(_Lines, self)._split_lines(part, width)
        ]


class _Parser(Parser):
    @override
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


_USAGE = """python -m server --bundle DIR [option …]
       python -m server bench --bundle DIR [option …]
       python -m server doctor --bundle DIR [-- CMD …]"""
_ABOUT = """\
Serve a bundle over HTTP and gRPC: Vertex AI's predictions, the Open Inference Protocol v2,
TensorFlow Serving's REST API, Prometheus metrics. `bench` measures its throughput on this machine,
`doctor` checks that it meets Vertex AI's requirements.

Every option can also be set by the environment variables in [brackets]; a flag overrides them.
"""
_STATUSES = """\
exit status:
  0  stopped by a signal, all requests answered
  1  stopped by a signal, not all requests answered
  2  the configuration is invalid, a port is taken, or a package is missing
  3  the bundle cannot be served
  4  this device does not reproduce the bundle's goldens
  5  the device is missing or failed
"""


def parser() -> Parser:
    """Make the parser of `python -m server`."""
    made = _Parser(
        prog=spelled("python -m server"),
        usage=spelled(_USAGE),
        description=_ABOUT,
        epilog=_STATUSES,
        formatter_class=_Lines,
        allow_abbrev=False,
    )
    add_version(made)
    for title, group in itertools.groupby(options(), lambda option: option.group):
        section = made.add_argument_group(title)
        for option in group:
            add = functools.partial(section.add_argument, option.flag, dest=option.name)
            if option.switch:
                add(
                    action="store_const",
                    const="0",
                    help=f"{option.help}\n[{option.variables[0]}=0]",
                )
            else:
                variables = ", ".join(option.variables)
                text = f"{spelled(option.help)} (default: {option.default})\n[{variables}]"
                action = "append" if option.repeats else "store"
                add(metavar=option.unit, help=text.replace("%", "%%"), action=action)
    return made


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> ServerConfig:
    """Return the configuration from the command line and the environment.

    Args:
      argv: without the program's name.
      environ: the variables that `--help` names are read, and AIP_MODE. An empty one counts as
        unset: Vertex AI sets AIP_STORAGE_URI to "" for a model without artifacts.

    Raises:
      ConfigError: with the flag or variable, what is expected and what it has.
    """
    flags, others = parser().parse_known_args(argv)
    if others:
        raise ConfigError(f"{others[0]!r}: expected options alone; pass --bundle DIR")
    types = {field.name: type(field.default) for field in dataclasses.fields(ServerConfig)}
    values: dict[str, Any] = {}
    for option in options():
        text, source = getattr(flags, option.name), option.flag
        if text is None:
            text, source = _from_environment(option, environ)
        if isinstance(text, list):
            text = ",".join(text)
        if text is not None:
            convert = _processes if option.name == "processes" else _convert
            values[option.name] = convert(text, types[option.name], source)
        elif option.name.endswith("_route") and environ.get("AIP_MODE") == "PREDICTION":
            # Vertex AI sets both; with a default path it would not reach the server.
            raise ConfigError(
                f"{option.variables[-1]}: expected a path, as AIP_MODE is PREDICTION, got none; "
                f"pass {option.flag}"
            )
    if "bundle" not in values and Path(BAKED_IN, MANIFEST_NAME).is_file():
        values["bundle"] = BAKED_IN
        if "require_digest" not in values and DIGEST_FILE.is_file():
            values["require_digest"] = f"sha256:{_read_digest(DIGEST_FILE)}"
    if "executables" not in values and Path(EXECUTABLES, LIST).is_file():
        # In the image itself: a user who can change them can change this file as well.
        listed = Path(EXECUTABLES, LIST).read_bytes()
        values["executables"] = str(EXECUTABLES)
        values["executables_digest"] = f"sha256:{hashlib.sha256(listed).hexdigest()}"
    return ServerConfig(**values)


def _read_digest(file: Path) -> str:
    """Return the digest in a file written by sha256sum, in hex."""
    try:
        text = read_text(file)
    except NotText as error:
        raise ConfigError(f"{file}: expected a line of sha256sum, got {error}") from None
    match = re.fullmatch(r"([0-9a-f]{64})( .*)?\n?", text)
    if match is None:
        raise ConfigError(
            f"{file}: expected a line of sha256sum that begins with 64 hex digits, got {text[:80]!r}"
        )
    return match[1]


def _from_environment(option: Option, environ: Mapping[str, str]) -> tuple[str | None, str]:
    for name in option.variables:
        # In a namespace with a service named X, Kubernetes sets X_PORT=tcp://…
        if (text := environ.get(name)) and not text.startswith("tcp://"):
            return text, name
    return None, ""


def _processes(text: str, type_: type, source: str) -> int:
    """Return a number of processes, AUTO for `auto`."""
    if text == "auto":
        return AUTO
    if text.isascii() and text.isdecimal() and int(text):
        return int(type_(text))
    raise ConfigError(f"{source}: expected a number of 1 or more, or auto, got {text[:100]!r}")


def _convert(text: str, type_: type, source: str) -> Any:
    if type_ is str:
        return text
    if type_ is bool:
        if text not in ("0", "1"):
            raise ConfigError(f"{source}: expected 0 or 1, got {text!r}")
        return text == "1"
    try:
        return type_(text)
    except ValueError:
        expected = "a whole number" if type_ is int else "a number"
        raise ConfigError(f"{source}: expected {expected}, got {text!r}") from None
