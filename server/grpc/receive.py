"""Which gRPC calls receive their message, and how long that may take.

gRPC's C core stores a message while it arrives, and says nothing of it until it is whole. Before
a call asks for its message, flow control lets the client send no more than a window of it
(`grpc_options.WINDOW`). So what arrives is bounded by having few calls ask at once.

A message that its client sends at once takes a slot for less than a millisecond. A client that sends
one slowly, or not at all, must not occupy the slots:

* while calls wait for a slot, one that has had its own for `PROMPT_CHECKS` checks is slow. Slow calls
  may have half of the slots, beyond that they are refused: another try may work
* a connection that has had a slow call waits for those slots alone, until a message of it arrives
* connections take turns, whatever the number of calls that each has
* of more calls than may wait, one of the connection with the largest number is refused

All on the event loop. Time is counted in checks, not read from a clock: a process that was
suspended refuses no call for it.
"""

import asyncio
import collections
from typing import Any, Protocol

import grpc

from runtime.errors import MalformedRequest
from server.errors import BodyTimeout, Overloaded

# Messages that arrive at once, each as large as one may be.
SLOTS = 8
# Calls that wait for a slot, each with a window of its message.
WAITING = 4096
# How often calls are checked, and for how many checks a call may have a slot: while others wait
# for one, while others wait for one of those that slow calls may have, and at most, a minute.
CHECK_S = 0.25
PROMPT_CHECKS = 2
SLOW_CHECKS = 8
MAX_CHECKS = 240
# For how many checks a connection is remembered as a slow one.
_REMEMBERED = 120


class Context(Protocol):
    """What is used of grpc.aio.ServicerContext, which is not typed."""

    async def read(self) -> Any:
        """Return the call's next message, or grpc.aio.EOF."""

    def peer(self) -> str:
        """Return the address of the connection's other end."""


class _Arrival:
    """A call on its way to its message."""

    # For nearly every call nothing of this is ever set.
    turn: asyncio.Future[None] | None = None  # while it waits for a slot
    connection = ""  # known only of those that have waited
    checks = 0
    slow = False
    error: Exception | None = None

    def __init__(self, context: Context) -> None:
        self.context = context
        self.task = asyncio.current_task()


# The calls of each connection that wait; the first connection has the next turn.
type _Waiting = dict[str, collections.deque[_Arrival]]


class Receiver:
    """Receives the messages of unary calls, few at once.

    Args:
      slots: messages that arrive at once.
      waiting: calls that wait for a slot.
      check_s: seconds between checks of them.
    """

    def __init__(
        self, slots: int = SLOTS, waiting: int = WAITING, check_s: float = CHECK_S
    ) -> None:
        self._slots = slots
        self._max_slow = max(1, slots // 2)
        self._max_waiting = waiting
        self._check_s = check_s
        self._receiving: dict[_Arrival, None] = {}  # in the order in which they began
        self._slow = 0  # of them
        self._prompt: _Waiting = {}
        self._penalized: _Waiting = {}
        self._waiting = 0
        self._slow_connections: dict[str, int] = {}  # to the checks that are left
        self._timer: asyncio.TimerHandle | None = None

    @property
    def receiving(self) -> int:
        """Return the number of calls that have a slot."""
        return len(self._receiving)

    @property
    def waiting(self) -> int:
        """Return the number of calls that wait for a slot."""
        return self._waiting

    async def receive(self, context: Context) -> bytes:
        """Return the message of a call.

        Raises:
          MalformedRequest: the client sent none.
          Overloaded: too many calls wait for theirs.
          BodyTimeout: it did not arrive in time.
        """
        arrival = _Arrival(context)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._check_s, self._on_time)
        turn = None
        if self._waiting or self._slow_connections or len(self._receiving) >= self._slots:
            turn = self._queue(arrival)
        else:
            self._receiving[arrival] = None
        try:
            if turn is not None:
                await turn
            message = await context.read()
        except asyncio.CancelledError:
            # Cancelled by `_end`, unless the client has gone as well.
            if arrival.error is None or arrival.task is None or arrival.task.uncancel():
                raise
            raise arrival.error from None
        finally:
            self._leave(arrival)
        if message is grpc.aio.EOF:
            raise MalformedRequest("message: expected one, got none")
        if self._slow_connections:
            self._forgive(arrival.connection or context.peer())
        return message  # type: ignore[no-any-return]

    def stop(self, error: Exception) -> None:
        """Refuse the calls that have not received their message."""
        for queue in (self._prompt, self._penalized):
            for arrival in [each for calls in queue.values() for each in calls]:
                self._end(arrival, error)
        for arrival in self._receiving:
            self._end(arrival, error)

    def check_timeouts(self) -> None:
        """Refuse the calls whose message takes too long; has to be called every so often."""
        for arrival in list(self._receiving):
            arrival.checks += 1
            if arrival.checks > MAX_CHECKS:
                seconds = MAX_CHECKS * self._check_s
                self._end(arrival, BodyTimeout(f"message: expected all of it within {seconds:g} s"))
        old = [a for a in self._receiving if a.checks >= (SLOW_CHECKS if a.slow else PROMPT_CHECKS)]
        for arrival in [a for a in old if a.slow][: len(self._penalized)]:
            self._end(arrival, self._overdue())
        quick = [a for a in old if not a.slow] if self._prompt else []
        for arrival in quick:
            self._slow_down(arrival)
        for arrival in [a for a in quick if not a.slow][: len(self._prompt)]:
            self._end(arrival, self._overdue())
        self._grant()
        for connection, checks in list(self._slow_connections.items()):
            if checks > 1 or connection in self._penalized:
                self._slow_connections[connection] = checks - 1
            else:
                del self._slow_connections[connection]

    def _on_time(self) -> None:
        self._timer = None
        self.check_timeouts()
        if self._receiving or self._waiting or self._slow_connections:
            self._timer = asyncio.get_running_loop().call_later(self._check_s, self._on_time)

    def _slow_down(self, arrival: _Arrival) -> None:
        """Move a call to one of the slots for slow calls, if one is free."""
        connection = arrival.connection or arrival.context.peer()
        self._slow_connections[connection] = _REMEMBERED
        if connection in self._prompt:
            self._penalized[connection] = self._prompt.pop(connection)
        if self._slow < self._max_slow:
            arrival.slow = True
            self._slow += 1

    def _overdue(self) -> Overloaded:
        return Overloaded(
            "message: expected all of it by now, as more calls wait to send theirs than the "
            f"{self._slots} that may at once, got a part"
        )

    def _forgive(self, connection: str) -> None:
        """Trust a connection again, of which a message has arrived."""
        self._slow_connections.pop(connection, None)
        if connection in self._penalized:
            self._prompt[connection] = self._penalized.pop(connection)
            self._grant()

    def _queue(self, arrival: _Arrival) -> "asyncio.Future[None]":
        """Queue a call for a slot; return a future that is done when it has one."""
        connection = arrival.connection = arrival.context.peer()
        if self._waiting >= self._max_waiting:
            self._shed(connection)
        queue = self._penalized if connection in self._slow_connections else self._prompt
        queue.setdefault(connection, collections.deque()).append(arrival)
        self._waiting += 1
        arrival.turn = turn = asyncio.get_running_loop().create_future()
        self._grant()
        return turn

    def _leave(self, arrival: _Arrival) -> None:
        """Release a call's slot, or its place in the queue."""
        if arrival.turn is not None:
            self._forget(arrival)
            return
        del self._receiving[arrival]
        self._slow -= arrival.slow
        if self._waiting:
            self._grant()

    def _grant(self) -> None:
        """Assign free slots to calls that wait."""
        while self._prompt and len(self._receiving) < self._slots:
            self._begin(self._prompt, slow=False)
        while (
            self._penalized and len(self._receiving) < self._slots and self._slow < self._max_slow
        ):
            self._begin(self._penalized, slow=True)

    def _begin(self, queue: _Waiting, *, slow: bool) -> None:
        connection, calls = next(iter(queue.items()))
        del queue[connection]
        arrival = calls.popleft()
        if calls:
            queue[connection] = calls  # behind the others
        self._waiting -= 1
        self._receiving[arrival] = None
        arrival.slow = slow
        self._slow += slow
        turn, arrival.turn = arrival.turn, None
        if turn is not None and not turn.done():
            turn.set_result(None)

    def _forget(self, arrival: _Arrival) -> None:
        """Remove a call from the queue, if it is in it."""
        for queue in (self._prompt, self._penalized):
            calls = queue.get(arrival.connection)
            if calls is not None and arrival in calls:
                calls.remove(arrival)
                self._waiting -= 1
                if not calls:
                    del queue[arrival.connection]

    def _shed(self, connection: str) -> None:
        """Refuse a waiting call of the connection that has the largest number, the new one's first.

        Raises:
          Overloaded: it is the new one.
        """
        error = Overloaded(
            f"message: expected at most {self._max_waiting} calls that wait to send theirs, got more"
        )
        queues = (*self._prompt.items(), *self._penalized.items())
        largest, calls = max(queues, key=lambda item: len(item[1]))
        own = self._prompt.get(connection) or self._penalized.get(connection) or ()
        if largest == connection or len(calls) <= len(own) + 1:
            raise error
        self._end(calls[-1], error)

    def _end(self, arrival: _Arrival, error: Exception) -> None:
        """Refuse a call; its handler continues at the next turn of the loop."""
        if arrival.turn is not None:
            self._forget(arrival)
            if not arrival.turn.done():
                arrival.turn.set_exception(error)
        elif arrival.error is None and arrival.task is not None:
            arrival.error = error
            arrival.task.cancel()
