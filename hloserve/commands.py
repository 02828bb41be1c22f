"""The commands of `hloserve`, and which package runs each."""

from typing import NamedTuple


class Command(NamedTuple):
    """A command.

    Attributes:
      words: as it is called, behind `hloserve`.
      package: runs it, as `python -m` would.
      arguments: come before the user's own.
      summary: one line for the help.
    """

    words: str
    package: str
    arguments: tuple[str, ...]
    summary: str


COMMANDS = (
    Command("export", "export", (), "export a Flax model into a bundle"),
    Command("predict", "runtime", ("predict",), "answer the rows of files, into a folder of files"),
    Command("inspect", "runtime", ("inspect",), "check every file and show what a bundle holds"),
    Command("verify", "runtime", ("verify",), "run goldens and row-independence probes here"),
    Command("bench", "runtime", ("bench",), "time every program of a bundle on this device"),
    Command("compile", "runtime", ("compile",), "compile a bundle's programs for later starts"),
    Command(
        "doctor", "runtime", ("doctor",), "find out whether a bundle loads, where, and for how long"
    ),
    Command("refresh", "runtime", ("refresh",), "make a new bundle of an old one for this jax"),
    Command("serve", "server", (), "serve a bundle over HTTP and gRPC"),
    Command("serve bench", "server", ("bench",), "measure how many requests a server answers"),
    Command("serve doctor", "server", ("doctor",), "check a server as Vertex AI would"),
)
# Written by this package itself.
COMPLETION = "completion"
SHELLS = ("bash", "zsh", "fish")


def find(words: list[str]) -> Command | None:
    """Return the command that words begin with, the longest of several."""
    begins = {" ".join(words[:count]): count for count in (1, 2)}
    found = [command for command in COMMANDS if command.words in begins]
    return max(found, key=lambda command: len(command.words), default=None)
