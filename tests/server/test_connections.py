"""Connections that another library has opened are ended without its help."""

import socket

from server.connections import shut


def test_connections_of_a_port_end_and_no_others():
    """Clients of the port read what was sent and the end; the port and others stay open."""
    with (
        socket.create_server(("127.0.0.1", 0)) as ours,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(ours.getsockname()) as client,
        socket.create_connection(other.getsockname()) as stranger,
    ):
        (here, _), (there, _) = ours.accept(), other.accept()
        with here, there:
            here.sendall(b"answer")

            shut(ours.getsockname()[1])

            client.settimeout(30)
            assert (client.recv(100), client.recv(100)) == (b"answer", b"")
            there.sendall(b"still there")
            assert stranger.recv(100) == b"still there"
            socket.create_connection(ours.getsockname()).close()
