"""Log lines whose reader is slow, has exited or never existed: no thread that logs waits for it."""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys

from pytest import fixture, mark

from server.log_writer import LineWriter
from server.logs import FLUSH_S, REPEATS, Handler, JsonFormatter, Stream, TextFormatter
from tests.serving import ROOT

LINE = "x" * 99 + "\n"


@fixture
def pipe():
    """A pipe: its read end and its write end."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def read(fd, size):
    """Read so many bytes."""
    found = b""
    while len(found) < size:
        found += os.read(fd, size - len(found))
    return found.decode()


def test_lines_come_out_in_order(pipe):
    """A reader receives every line, in the order in which they were written."""
    writer = LineWriter(pipe[1])
    lines = [f"{number}\n" for number in range(1000)]

    for line in lines:
        writer.write(line)

    assert writer.flush(30)
    assert read(pipe[0], len("".join(lines))) == "".join(lines)
    assert writer.dropped == 0


def test_a_reader_that_does_not_read_costs_lines_and_no_time(pipe):
    """Beyond the buffer's limit lines are dropped and counted; once the reader reads again, one line reports how many."""
    writer = LineWriter(pipe[1], pending_bytes=1000)
    # More than the pipe and the writer hold, so that the writer's thread is stuck.
    while writer.dropped < 10 or writer.flush(0.0):
        writer.write(LINE)
    dropped = writer.dropped
    text, reported = "", []
    while sum(reported) < dropped:
        text += os.read(pipe[0], 1 << 16).decode()
        reported = [int(count) for count in re.findall(r"dropped (\d+) log lines\n", text)]

    assert sum(reported) == dropped
    lines = [line for line in text.splitlines() if "dropped" not in line]
    assert set(lines) == {LINE.strip()}
    assert writer.flush(30)


def test_a_line_longer_than_all_that_may_wait_is_written(pipe):
    """One line is accepted whatever its length, so that a long traceback is not lost."""
    writer = LineWriter(pipe[1], pending_bytes=10)

    writer.write(LINE)

    assert read(pipe[0], len(LINE)) == LINE


@mark.parametrize("how", ["gone", "closed", "full"])
def test_what_cannot_be_written_is_dropped(pipe, how):
    """Without a reader, a descriptor or space on the disk lines are counted as dropped, without any other effect."""
    if how == "full":
        fd = os.open("/dev/full", os.O_WRONLY)
    else:
        fd = pipe[1]
        os.close(pipe[0] if how == "gone" else pipe[1])
    writer = LineWriter(fd)

    writer.write(LINE)
    first = writer.flush(30)
    writer.write(LINE + LINE)
    second = writer.flush(30)
    if how == "full":
        os.close(fd)

    assert (first, second, writer.dropped) == (True, True, 3)


def test_a_pipe_that_does_not_block_is_waited_for(pipe):
    """Another process that shares the pipe may make it non-blocking; no line is lost or cut because of that."""
    os.set_blocking(pipe[1], False)
    writer = LineWriter(pipe[1])
    text = LINE * 5000

    writer.write(text)

    assert read(pipe[0], len(text)) == text


FORKING = """
import os, sys
from server.log_writer import LineWriter

writer = LineWriter(int(sys.argv[1]))
writer.write("parent\\n")
assert writer.flush(30)
child = os.fork()
if child == 0:
    writer.write("child\\n")
    os._exit(0 if writer.flush(30) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_writes_its_own_lines(pipe):
    """A worker that was forked while lines waited has a writer thread of its own, and none of these lines."""
    # In a process of its own: other tests' threads of gRPC do not take a fork well.
    command = [sys.executable, "-W", "ignore", "-c", FORKING, str(pipe[1])]

    assert subprocess.run(command, cwd=ROOT, pass_fds=[pipe[1]], check=True).returncode == 0
    assert read(pipe[0], len("parent\nchild\n")) == "parent\nchild\n"


@fixture
def logger(pipe):
    """A logger whose lines are JSON and go into the pipe."""
    writer = LineWriter(pipe[1])
    handler = Handler(writer, repeats=3)
    handler.setFormatter(JsonFormatter())
    writer.dropped_line = handler.dropped_line
    logger = logging.getLogger("server.test")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield logger
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)
    logger.propagate = True


def test_the_same_warning_is_logged_so_often_and_then_counted(pipe, logger):
    """Log lines that clients can cause without limit are limited in number; other lines are not."""
    for number in range(10):
        logger.warning("again: %d", number)
    for number in range(5):
        logger.info("so far: %d", number)
    logger.warning("another")
    found, dropped = [], 0
    while dropped < 7 or len(found) < 9:
        for line in os.read(pipe[0], 1 << 16).decode().splitlines():
            entry = json.loads(line)
            if "dropped" in entry["message"]:
                assert entry["severity"] == "WARNING"
                dropped += int(entry["message"].split()[1])
            else:
                found.append(entry["message"])

    again = [f"again: {number}" for number in range(3)]
    assert found == [*again, *(f"so far: {number}" for number in range(5)), "another"]
    assert dropped == 7


def test_the_limits_are_what_a_person_can_read():
    """A burst of failures is logged, and the exit is delayed by a bounded time only."""
    assert (REPEATS, FLUSH_S) == (100, 1.0)


def test_what_is_printed_goes_the_way_of_the_log(pipe):
    """Tracebacks and prints are written by the same thread; the stream has the descriptor that it replaces."""
    writer = LineWriter(pipe[1])
    stream = Stream(writer, pipe[1])

    print("printed", 1, file=stream, flush=True)

    assert read(pipe[0], len("printed 1\n")) == "printed 1\n"
    assert (stream.fileno(), stream.isatty(), stream.writable()) == (pipe[1], False, True)


def test_a_line_that_cannot_be_formatted_ends_nothing(pipe, capsys):
    """A mistake in a log call is reported on stderr, and raises nothing in the caller."""
    handler = Handler(LineWriter(pipe[1]))
    handler.setFormatter(TextFormatter())

    handler.handle(logging.LogRecord("server", logging.INFO, "", 0, "%d", ("x",), None))

    assert "TypeError" in capsys.readouterr().err
