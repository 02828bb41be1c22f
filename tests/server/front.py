"""The front on a real socket, in this process, over a model that is not real."""

import asyncio
import contextlib
import json
import socket
import struct
import time

from server.config import ServerConfig
from server.http.cors import Cors
from server.http.flask_app import create_app, make_wait
from server.http.frontend import HttpFrontend
from server.http.listener import HttpServer, listen
from server.http.routes import hot_paths, make_routes
from tests.server.fakes import FakeModel, Running


class Entrance:
    """A front that listens, and a client that writes bytes to it.

    Attributes:
      model: answers.
      running: the service's loop.
      port: where it listens.
      server: its connections.
      app: the application behind the front.
    """

    def __init__(self, model=None, limits=None, *, load=True, **config):
        self.model = model or FakeModel()
        self.running = Running(**(limits or {}))
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.config = ServerConfig(bundle="unused", host="127.0.0.1", port=self.port, **config)
        self.service = self.running.service
        routes = make_routes(self.service, self.config)
        cors = Cors(self.config.origins)
        self.app = create_app(
            self.service, routes, self.config.bodies, make_wait(self.running.loop), cors
        )
        self.front = HttpFrontend(self.app, self.service, self.config.bodies, threads=4, cors=cors)
        if load:
            self.running.open(self.model)
            self.front.inference_routes = hot_paths(self.service, routes)
        self.server = HttpServer(self.front, listener)
        self._served = asyncio.run_coroutine_threadsafe(self.server.serve(), self.running.loop)

    def look(self, later_s):
        """Have the server look at its connections as if it were so much later."""

        async def look():
            for connection in list(self.server.connections):
                connection.check_timeouts(time.monotonic() + later_s)

        self.running.wait(look())

    def connect(self):
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def send(self, *parts, cut=False):
        """Write parts to one connection, and give all that comes back until it is closed.

        With `cut`, no more can follow: the server sees the end of what was sent.
        """
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    connection.sendall(part)
                if cut:
                    connection.shutdown(socket.SHUT_WR)
            return read_all(connection)

    def ask(self, numbers=(1, 2)):
        """Ask for a prediction the plain way, and give it."""
        status, _, body = self.post({"instances": [list(numbers)]})
        assert status == 200, body
        return body["predictions"]

    def post(self, value, path="/predict", headers=""):
        """Post a value as JSON; give the status, the headers and what came back."""
        body = json.dumps(value).encode()
        with self.connect() as connection:
            connection.sendall(request(path, body, headers))
            return read_answer(connection)

    def close(self):
        """Stop listening, and end the loop."""
        self._served.cancel()
        self.running.wait(self.server.stop())
        self.running.close()


def request(path, body, headers="", method="POST"):
    """Write a request."""
    head = f"{method} {path} HTTP/1.1\r\nhost: t\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def reset(connection):
    """Leave so that the other side is told: with no more than an end the answer could still be read."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_all(connection):
    """Read until the connection is closed."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def read_answer(connection):
    """Read one answer: status, headers, and its body as JSON."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers = {}
        while line := file.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = file.read(int(headers["content-length"]))
    return status, headers, json.loads(body) if body else None
