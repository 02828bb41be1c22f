"""A port that another library has opened is left without its help."""

import socket

from pytest import raises

from server.connections import leave


def test_a_port_that_is_left_ends_its_connections_and_no_others():
    """Clients read what was sent and the end, others are refused; other ports stay as they are."""
    ours, other = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    address = ours.getsockname()
    with (
        other,
        socket.create_connection(address) as client,
        socket.create_connection(other.getsockname()) as stranger,
    ):
        (here, _), (there, _) = ours.accept(), other.accept()
        with here, there:
            here.sendall(b"answer")

            leave(address[1])
            ours.detach()  # it is closed

            client.settimeout(30)
            assert (client.recv(100), client.recv(100)) == (b"answer", b"")
            with raises(ConnectionRefusedError):
                socket.create_connection(address)
            there.sendall(b"still there")
            assert stranger.recv(100) == b"still there"
