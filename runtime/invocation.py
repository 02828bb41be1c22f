"""How the user called this program: usage lines, errors and advice name commands so."""

from typing import ClassVar


class _Process:
    """What this process was called as; nothing for `python -m`, which the texts are written for."""

    program: ClassVar[str] = ""
    command: ClassVar[str] = ""


def called_as(program: str, command: str) -> None:
    """Set how this process was called, once, before it does anything.

    Args:
      program: such as `hloserve`.
      command: such as `verify`.
    """
    _Process.program, _Process.command = program, command


def error_line(message: object) -> str:
    """Return the line that reports an error: `error: …`, or `hloserve verify: error: …`."""
    name = f"{_Process.program} {_Process.command}: " if _Process.program else ""
    return f"{name}error: {spelled(str(message))}"


def spelled(text: str) -> str:
    """Return a text with the commands in it as this user calls them."""
    program = _Process.program
    if not program:
        return text
    text = text.replace("python -m export", f"{program} export")
    text = text.replace("python -m server", f"{program} serve")
    return text.replace("python -m runtime", program)
