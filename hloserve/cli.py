"""`hloserve`: every command of this project under one name. See `--help`.

Nothing but the standard library is imported until the command is known: each runs as
`python -m export`, `python -m runtime` or `python -m server` would run it.
"""

import contextlib
import os
import runpy
import sys

from hloserve.commands import COMMANDS, COMPLETION, SHELLS, Command, find
from hloserve.packages import import_own

EXIT_USAGE = 2


def main(name: str = "hloserve") -> int:
    """Run the command of `sys.argv`; return or exit with its status.

    Args:
      name: of this program, as the user called it.
    """
    try:
        import_own("runtime")
    except ImportError as error:  # of an older Python, for one
        print(f"{name}: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    words = sys.argv[1:]
    command = find(words)
    if command is not None:
        _run(command, name)
        return 0
    if not words:
        sys.stderr.write(usage(name))
        return EXIT_USAGE
    return _own(words, name)


def _own(words: list[str], name: str) -> int:
    """Answer what this package answers itself; return the exit status."""
    if words[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage(name))
        return 0
    if words == ["--version"]:
        from runtime.release import name_and_version

        print(name_and_version())
        return 0
    if words[0] == COMPLETION:
        return _completion(name, words[1:])
    print(f"{name}: error: {_unknown(words[0])}", file=sys.stderr)
    return EXIT_USAGE


def _run(command: Command, name: str) -> None:
    """Run a command as the program of this process."""
    from runtime import invocation

    invocation.called_as(name, command.words)
    import_own(command.package)
    if command.package == "export" and not sys.flags.safe_path:
        # MODEL can be a module of the user's, as it can with `python -m export`.
        with contextlib.suppress(FileNotFoundError):
            sys.path.insert(0, os.getcwd())  # noqa: PTH109 (as Python itself writes it)
    own = len(command.words.split())
    sys.argv[1:] = [*command.arguments, *sys.argv[1 + own :]]
    runpy.run_module(command.package, run_name="__main__", alter_sys=True)


def _unknown(word: str) -> str:
    from runtime.errors import nearest

    if word.startswith("-"):
        return f"{word}: no such option{nearest(word, ('--help', '--version'))}"
    names = [command.words for command in COMMANDS]
    known = f"expected {', '.join([*names, COMPLETION])}, got {word!r}"
    return f"command: {known}{nearest(word, [*names, COMPLETION])}"


def _completion(name: str, words: list[str]) -> int:
    """Print what completes commands and options in a shell."""
    if words in (["-h"], ["--help"]):
        print(
            f"usage: {name} {COMPLETION} {'|'.join(SHELLS)}\n\n"
            "Print what completes commands, options and files in a shell, such as\n\n"
            f"  bash  {name} {COMPLETION} bash > ~/.local/share/bash-completion/completions/hloserve\n"
            f"  zsh   {name} {COMPLETION} zsh > ~/.zfunc/_hloserve    # a folder of $fpath\n"
            f"  fish  {name} {COMPLETION} fish > ~/.config/fish/completions/hloserve.fish"
        )
        return 0
    if len(words) != 1 or words[0] not in SHELLS:
        from runtime.errors import nearest

        got = " ".join(words) or "none"
        hint = nearest(got, SHELLS)
        print(
            f"{name} {COMPLETION}: error: shell: expected {', '.join(SHELLS)}, got {got}{hint}",
            file=sys.stderr,
        )
        return EXIT_USAGE
    from hloserve.completion import script

    sys.stdout.write(script(words[0]))
    return 0


def usage(name: str) -> str:
    """Return the help, one line for each command."""
    rows = [(command.words, command.summary) for command in COMMANDS]
    rows.append((f"{COMPLETION} SHELL", f"print what completes all this in {', '.join(SHELLS)}"))
    width = max(len(words) for words, _ in rows)
    lines = "\n".join(f"  {words:<{width}}  {summary}" for words, summary in rows)
    return (
        f"usage: {name} COMMAND [option …]\n\n"
        "Export a Flax model to compiled StableHLO programs; serve them without Flax.\n\n"
        f"{lines}\n\n"
        f"{name} COMMAND --help has the options of each; {name} --version names the release.\n"
    )
