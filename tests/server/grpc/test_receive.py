"""Which gRPC calls receive their message: a few at once, in turns, and none without a time limit."""

import asyncio
import re

import grpc
from pytest import fixture, mark, raises

from runtime.errors import MalformedRequest
from server.errors import BodyTimeout, Draining, Overloaded
from server.grpc.receive import MAX_CHECKS, PROMPT_CHECKS, SLOW_CHECKS, Receiver

OVERDUE = (
    "message: expected all of it by now, as more calls wait to send theirs than the 2 that may "
    "at once, got a part"
)


class Call:
    """A call, whose message arrives on demand.

    Attributes:
      asked: whether its message is asked for.
    """

    def __init__(self, connection):
        self._connection = connection
        self._message = asyncio.get_running_loop().create_future()
        self.asked = False

    async def read(self):
        """Return the message once it has arrived."""
        self.asked = True
        return await self._message

    def peer(self):
        """Return the connection."""
        return self._connection

    def arrive(self, message=b"whole"):
        """Let the message arrive."""
        self._message.set_result(message)


class ReceiverHarness:
    """A receiver of two slots, and the calls that it receives."""

    def __init__(self, waiting=100):
        self.receiver = Receiver(slots=2, waiting=waiting, check_s=3600)
        self.results = {}

    async def begin_call(self, connection):
        """Begin a call; return it."""
        call = Call(connection)
        self.results[call] = asyncio.ensure_future(self.receiver.receive(call))
        await settled()
        return call

    async def result(self, call):
        """Return what a call received."""
        return await asyncio.wait_for(self.results[call], 30)

    async def check_timeouts(self, times=1):
        """Check the timeouts of the calls."""
        for _ in range(times):
            self.receiver.check_timeouts()
        await settled()

    async def close(self):
        """Cancel all calls."""
        for result in self.results.values():
            result.cancel()
        await asyncio.gather(*self.results.values(), return_exceptions=True)
        assert (self.receiver.receiving, self.receiver.waiting) == (0, 0)


async def settled():
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


@fixture
def played():
    """Run a scenario with a receiver; afterwards no call is left in it."""

    def play(scene, **options):
        async def whole():
            harness = ReceiverHarness(**options)
            await scene(harness)
            await harness.close()

        asyncio.run(whole())

    return play


def test_no_more_messages_arrive_than_there_are_slots(played):
    """A third call waits until one of two has its message, and gets its own then."""

    async def scene(harness):
        calls = [await harness.begin_call("a") for _ in range(3)]
        assert [call.asked for call in calls] == [True, True, False]

        calls[0].arrive(b"first")
        await settled()
        calls[2].arrive(b"third")

        assert await harness.result(calls[0]) == b"first"
        assert await harness.result(calls[2]) == b"third"

    played(scene)


def test_connections_take_turns(played):
    """A connection with one call does not wait for all calls of a connection with many."""

    async def scene(harness):
        held = [await harness.begin_call("a") for _ in range(2)]
        many = [await harness.begin_call("a") for _ in range(50)]
        one = await harness.begin_call("b")

        for call in (*held, *many[:1]):
            call.arrive()
            await settled()

        assert one.asked

    played(scene)


def test_calls_that_never_send_make_room_for_others(played):
    """While others wait, a call whose message does not arrive loses its slot, or keeps one of those for slow calls."""

    async def scene(harness):
        silent = [await harness.begin_call("a") for _ in range(2)]
        honest = await harness.begin_call("b")

        await harness.check_timeouts(PROMPT_CHECKS)
        assert honest.asked
        assert harness.receiver.receiving == 2
        refused = [call for call in silent if harness.results[call].done()]
        with raises(Overloaded, match=f"^{re.escape(OVERDUE)}$"):
            await harness.result(refused[0])

        # The connection is known to be slow now: what else it sends takes no slot from others.
        again = [await harness.begin_call("a") for _ in range(10)]
        honest.arrive()
        await settled()
        others = await harness.begin_call("b")

        assert not any(call.asked for call in again)
        assert others.asked

    played(scene)


def test_slow_calls_of_slow_connections_make_room_for_each_other(played):
    """A slot for slow calls, too, is not occupied for ever while others wait for it."""

    async def scene(harness):
        [await harness.begin_call("a") for _ in range(2)]
        await harness.begin_call("b")
        await harness.check_timeouts(PROMPT_CHECKS)
        waits = await harness.begin_call("a")
        assert not waits.asked

        await harness.check_timeouts(SLOW_CHECKS)

        assert waits.asked

    played(scene)


def test_a_connection_whose_message_arrives_is_trusted_again(played):
    """A slow call whose message arrives in the end makes all slots available to its connection again."""

    async def scene(harness):
        first, second = [await harness.begin_call("a") for _ in range(2)]
        third = await harness.begin_call("b")
        await harness.check_timeouts(PROMPT_CHECKS)
        slow = second if harness.results[first].done() else first

        slow.arrive()
        third.arrive()
        await settled()
        more = [await harness.begin_call("a") for _ in range(2)]

        assert [call.asked for call in more] == [True, True]

    played(scene)


def test_a_slow_message_is_received_whole_where_no_other_waits(played):
    """A client that needs many checks to send its message gets its response."""

    async def scene(harness):
        call = await harness.begin_call("a")
        await harness.check_timeouts(MAX_CHECKS)
        call.arrive()

        assert await harness.result(call) == b"whole"

    played(scene)


def test_a_message_that_never_comes_is_given_up(played):
    """After its deadline a call is refused, whether others wait or not."""

    async def scene(harness):
        call = await harness.begin_call("a")
        await harness.check_timeouts(MAX_CHECKS + 1)

        with raises(BodyTimeout, match=r"^message: expected all of it within 864000 s$"):
            await harness.result(call)

    played(scene)


def test_of_too_many_calls_one_of_the_busiest_connection_is_refused(played):
    """A connection with too many calls has them refused; a call of another connection takes the place of one of them."""

    async def scene(harness):
        flood = [await harness.begin_call("a") for _ in range(2 + 5)]
        own = await harness.begin_call("a")
        text = "^message: expected at most 5 calls that wait to send theirs, got more$"
        with raises(Overloaded, match=text):
            await harness.result(own)

        stranger = await harness.begin_call("b")
        assert not harness.results[stranger].done()
        assert harness.receiver.waiting == 5
        with raises(Overloaded, match=text):
            await harness.result(flood[-1])

    played(scene, waiting=5)


def test_a_call_that_is_given_up_leaves_nothing_behind(played):
    """Calls that are cancelled while they wait, or while their message arrives, free their places."""

    async def scene(harness):
        calls = [await harness.begin_call("a") for _ in range(4)]
        for call in calls:
            harness.results[call].cancel()
        await settled()

        assert (harness.receiver.receiving, harness.receiver.waiting) == (0, 0)
        assert (await harness.begin_call("b")).asked

    played(scene)


def test_a_stop_refuses_calls_without_their_message(played):
    """Waiting calls, and those whose message arrives, are refused with the given error."""

    async def scene(harness):
        calls = [await harness.begin_call("a") for _ in range(4)]
        harness.receiver.stop(Draining("the server is stopping"))

        for call in calls:
            with raises(Draining, match=r"^the server is stopping$"):
                await harness.result(call)

    played(scene)


def test_a_call_without_a_message_is_refused(played):
    """A call that ends its side without a message is refused with what was expected."""

    async def scene(harness):
        call = await harness.begin_call("a")
        call.arrive(grpc.aio.EOF)

        with raises(MalformedRequest, match=r"^message: expected one, got none$"):
            await harness.result(call)

    played(scene)


@mark.parametrize("known", [False, True], ids=["at-once", "after-a-turn"])
def test_a_client_that_goes_as_it_is_refused_is_gone(played, known):
    """A call that is refused and cancelled at the same time is cancelled: there is no client to answer."""

    async def scene(harness):
        if known:
            [(await harness.begin_call("a")).arrive() for _ in range(2)]
            await settled()
        call = await harness.begin_call("a")
        harness.receiver.stop(Draining("the server is stopping"))
        harness.results[call].cancel()

        with raises(asyncio.CancelledError):
            await harness.result(call)

    played(scene)
