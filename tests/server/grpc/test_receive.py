"""Which gRPC calls receive their message: few at once, in turns, and nobody for long."""

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
        """Have the message arrive."""
        self._message.set_result(message)


class Door:
    """A receiver of two slots, and calls that come to it."""

    def __init__(self, waiting=100):
        self.receiver = Receiver(slots=2, waiting=waiting, check_s=3600)
        self.results = {}

    async def come(self, connection):
        """Have a call come; returns it."""
        call = Call(connection)
        self.results[call] = asyncio.ensure_future(self.receiver.receive(call))
        await settled()
        return call

    async def result(self, call):
        """Return what a call received."""
        return await asyncio.wait_for(self.results[call], 30)

    async def check_timeouts(self, times=1):
        """Have the calls looked at."""
        for _ in range(times):
            self.receiver.check_timeouts()
        await settled()

    async def close(self):
        """Return all calls up."""
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
    """Plays a scene at a door; afterwards nothing is left in it."""

    def play(scene, **options):
        async def whole():
            door = Door(**options)
            await scene(door)
            await door.close()

        asyncio.run(whole())

    return play


def test_no_more_messages_arrive_than_there_are_slots(played):
    """A third call waits until one of two has its message, and gets its own then."""

    async def scene(door):
        calls = [await door.come("a") for _ in range(3)]
        assert [call.asked for call in calls] == [True, True, False]

        calls[0].arrive(b"first")
        await settled()
        calls[2].arrive(b"third")

        assert await door.result(calls[0]) == b"first"
        assert await door.result(calls[2]) == b"third"

    played(scene)


def test_connections_take_turns(played):
    """A connection that has one call does not wait for all of one that has many."""

    async def scene(door):
        held = [await door.come("a") for _ in range(2)]
        many = [await door.come("a") for _ in range(50)]
        one = await door.come("b")

        for call in (*held, *many[:1]):
            call.arrive()
            await settled()

        assert one.asked

    played(scene)


def test_calls_that_never_send_make_room_for_others(played):
    """While others wait a message that does not come loses its slot, or one of the slow half."""

    async def scene(door):
        silent = [await door.come("a") for _ in range(2)]
        honest = await door.come("b")

        await door.check_timeouts(PROMPT_CHECKS)
        assert honest.asked
        assert door.receiver.receiving == 2
        refused = [call for call in silent if door.results[call].done()]
        with raises(Overloaded, match=f"^{re.escape(OVERDUE)}$"):
            await door.result(refused[0])

        # The connection is known for it now: what else it sends takes no slot from others.
        again = [await door.come("a") for _ in range(10)]
        honest.arrive()
        await settled()
        others = await door.come("b")

        assert not any(call.asked for call in again)
        assert others.asked

    played(scene)


def test_slow_calls_of_slow_connections_make_room_for_each_other(played):
    """Of the slots for slow calls, too, none is kept for ever while others wait for it."""

    async def scene(door):
        [await door.come("a") for _ in range(2)]
        await door.come("b")
        await door.check_timeouts(PROMPT_CHECKS)
        waits = await door.come("a")
        assert not waits.asked

        await door.check_timeouts(SLOW_CHECKS)

        assert waits.asked

    played(scene)


def test_a_connection_whose_message_arrives_is_trusted_again(played):
    """A slow call whose message is whole in the end opens all slots to its connection again."""

    async def scene(door):
        first, second = [await door.come("a") for _ in range(2)]
        third = await door.come("b")
        await door.check_timeouts(PROMPT_CHECKS)
        slow = second if door.results[first].done() else first

        slow.arrive()
        third.arrive()
        await settled()
        more = [await door.come("a") for _ in range(2)]

        assert [call.asked for call in more] == [True, True]

    played(scene)


def test_a_slow_message_is_whole_in_the_end_where_nobody_waits(played):
    """A client that needs many looks for its message gets its answer."""

    async def scene(door):
        call = await door.come("a")
        await door.check_timeouts(MAX_CHECKS)
        call.arrive()

        assert await door.result(call) == b"whole"

    played(scene)


def test_a_message_that_never_comes_is_given_up(played):
    """After its time a call is refused, whether others wait or not."""

    async def scene(door):
        call = await door.come("a")
        await door.check_timeouts(MAX_CHECKS + 1)

        with raises(BodyTimeout, match=r"^message: expected all of it within 864000 s$"):
            await door.result(call)

    played(scene)


def test_of_too_many_calls_one_of_the_busiest_connection_is_refused(played):
    """A flood is refused itself; a call of another connection takes the place of one of it."""

    async def scene(door):
        flood = [await door.come("a") for _ in range(2 + 5)]
        own = await door.come("a")
        text = "^message: expected at most 5 calls that wait to send theirs, got more$"
        with raises(Overloaded, match=text):
            await door.result(own)

        stranger = await door.come("b")
        assert not door.results[stranger].done()
        assert door.receiver.waiting == 5
        with raises(Overloaded, match=text):
            await door.result(flood[-1])

    played(scene, waiting=5)


def test_a_call_that_is_given_up_leaves_nothing_behind(played):
    """Clients that go while they wait, or while their message arrives, free their places."""

    async def scene(door):
        calls = [await door.come("a") for _ in range(4)]
        for call in calls:
            door.results[call].cancel()
        await settled()

        assert (door.receiver.receiving, door.receiver.waiting) == (0, 0)
        assert (await door.come("b")).asked

    played(scene)


def test_a_stop_refuses_calls_without_their_message(played):
    """Calls that wait, and those whose message arrives, are refused in the words that are given."""

    async def scene(door):
        calls = [await door.come("a") for _ in range(4)]
        door.receiver.stop(Draining("the server is stopping"))

        for call in calls:
            with raises(Draining, match=r"^the server is stopping$"):
                await door.result(call)

    played(scene)


def test_a_call_without_a_message_is_refused(played):
    """A client that ends its side before it has sent one gets to know what was expected."""

    async def scene(door):
        call = await door.come("a")
        call.arrive(grpc.aio.EOF)

        with raises(MalformedRequest, match=r"^message: expected one, got none$"):
            await door.result(call)

    played(scene)


@mark.parametrize("known", [False, True], ids=["at-once", "after-a-turn"])
def test_a_client_that_goes_as_it_is_refused_is_gone(played, known):
    """A call that is refused and cancelled together is cancelled: no call is left to answer."""

    async def scene(door):
        if known:
            [(await door.come("a")).arrive() for _ in range(2)]
            await settled()
        call = await door.come("a")
        door.receiver.stop(Draining("the server is stopping"))
        door.results[call].cancel()

        with raises(asyncio.CancelledError):
            await door.result(call)

    played(scene)
