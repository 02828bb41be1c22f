"""`python -m export`: a model in, a bundle out. See `--help`."""

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

# Training machines print pages of XLA and absl chatter; errors still come through.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "2")
# A model's own file may import Keras, whose backend is chosen then: programs are made of JAX alone.
os.environ.setdefault("KERAS_BACKEND", "jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Run an export; returns the exit status: 0 fine, 1 refused, 2 wrong usage."""
    from export.cli import spec_from
    from export.errors import ExportError, UsageError
    from export.parser import parser
    from runtime.commandline import needing, reading_settings
    from runtime.errors import BundleError
    from runtime.invocation import error_line
    from runtime.release import name_and_version

    words = sys.argv[1:] if argv is None else list(argv)
    if words == ["--version"]:  # with a word behind it, it is the model's version
        print(name_and_version())
        return 0
    arguments = parser().parse_args(words)
    with needing("export", "flax", "orbax.checkpoint"):
        from export.progress import shown, stderr_console
    begin = time.monotonic()
    console = stderr_console()

    def line(sentence: str) -> None:
        elapsed = time.monotonic() - begin
        print(f"[{elapsed:5.1f} s] {sentence}", file=sys.stderr, flush=True)

    try:
        with shown(console, line) as progress, contextlib.ExitStack() as stack:
            with reading_settings():
                from export.exporting import export_model
                from runtime.jax_settings import lifted

            # The model's own file is run in here as well.
            stack.enter_context(lifted())
            spec, notes = spec_from(arguments)
            for note in notes:
                console.print(f"note: {note}", markup=False, highlight=False)
            report = export_model(
                spec,
                out=arguments.out,
                overwrite=arguments.overwrite,
                dry_run=arguments.dry_run,
                savedmodel=arguments.savedmodel,
                tf_stablehlo=arguments.tf_stablehlo,
                check_gpu=arguments.check_gpu,
                progress=progress,
            )
    except (ExportError, BundleError) as error:
        print(error_line(error), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        print(error_line(f"{error.filename or arguments.out}: {error.strerror}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(error_line("interrupted; nothing was left behind"), file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    if arguments.json:
        print(dataclasses.replace(report, notes=(*notes, *report.notes)).to_json())
    else:
        report.print()
    return 0


def _quiet() -> None:
    """Let the one line of an error stand alone."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    # Orbax's readers outlive a failed read, and report to an event loop that is gone.
    sys.unraisablehook = lambda _: None


def end_in_order() -> None:
    """Let what CI, containers and closed terminals send end this as Ctrl-C does: nothing stays."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    end_in_order()
    _quiet()
    sys.exit(main())
