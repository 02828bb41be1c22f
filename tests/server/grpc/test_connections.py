"""A listening port and its connections, which a library opened without access to them."""

import asyncio
import contextlib
import socket

from pytest import fixture, raises

from server.grpc.connections import announce_end, end

# RFC 9113, 6.8: eight bytes, the type, no flags, the connection; the largest stream, and no error.
GOAWAY = bytes.fromhex("000008 07 00 00000000 7fffffff 00000000")


@fixture
def port():
    """Return a listening port, and the two ends of a connection to it."""
    with contextlib.ExitStack() as stack:
        listener = socket.create_server(("127.0.0.1", 0))
        stack.callback(listener.detach)  # it is closed by the test
        address = listener.getsockname()
        client = stack.enter_context(socket.create_connection(address))
        client.settimeout(30)
        here = stack.enter_context(listener.accept()[0])
        yield address, here, client


def test_a_port_that_is_left_announces_it_and_still_answers(port):
    """Clients receive a GOAWAY while their connections stay open; new connections are refused."""
    address, here, client = port
    here.sendall(b"answer")

    announce_end(address[1])

    assert client.recv(6, socket.MSG_WAITALL) == b"answer"
    assert client.recv(17, socket.MSG_WAITALL) == GOAWAY
    client.sendall(b"on its way")
    assert here.recv(100) == b"on its way"
    here.sendall(b"refused")
    assert client.recv(100) == b"refused"
    with raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_client_that_takes_nothing_has_no_frame_cut(port):
    """When the socket is full the library may have sent a part of a frame: no GOAWAY is written behind it."""
    address, here, client = port
    here.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += here.send(bytes(1 << 16))

    announce_end(address[1])
    here.close()

    got = b""
    while data := client.recv(1 << 16):
        got += data
    assert got == bytes(sent)


def test_connections_end_with_their_clients_and_no_others(port):
    """A client's connection is not shut down before its deadline; connections of other ports never are."""
    address, here, _ = port
    announce_end(address[1])
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(other.getsockname()) as stranger,
        other.accept()[0] as there,
    ):

        async def closed_by_the_client():
            ending = asyncio.create_task(end(address[1], 30))
            await asyncio.sleep(0)
            assert not ending.done()
            here.close()  # as a library does that has read the client's end of stream
            await ending

        asyncio.run(closed_by_the_client())
        asyncio.run(end(address[1], 0.0))
        there.sendall(b"still there")
        assert stranger.recv(100) == b"still there"


def test_a_client_that_does_not_close_is_not_waited_for_for_ever(port):
    """The client still reads what was sent to it, and then the end of the stream."""
    address, here, client = port
    here.sendall(b"answer")

    asyncio.run(end(address[1], 0.0))

    assert (client.recv(100), client.recv(100)) == (b"answer", b"")
