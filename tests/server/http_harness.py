"""The HTTP server on a real socket, in this process, in front of a fake model."""

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
from server.http.routes import make_routes
from tests.server.fakes import FakeModel, Running

# Of the bodies of the server that most tests use.
LIMIT = 5000
BODY = b'{"instances": [[1, 2]]}'


class HttpHarness:
    """A listening HTTP server, and a client that writes bytes to it.

    Attributes:
      model: the fake model.
      running: the service and its loop.
      port: of the listening socket.
      server: the HTTP server.
      app: the WSGI application with the same routes.
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
        front = HttpFrontend(self.service, routes, self.config.bodies, cors)
        if load:
            self.running.open(self.model)
        self.server = HttpServer(front, listener)
        self._served = asyncio.run_coroutine_threadsafe(self.server.serve(), self.running.loop)

    def check_timeouts(self, later_s):
        """Check the timeouts of all connections as if it were so many seconds later."""

        async def check():
            for connection in list(self.server.connections):
                connection.check_timeouts(time.monotonic() + later_s)

        self.running.wait(check())

    def connect(self):
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def send(self, *parts, cut=False):
        """Write parts to one connection, and return all that is received until it is closed.

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
        """Request a prediction as JSON, and return it."""
        status, _, body = self.post({"instances": [list(numbers)]})
        assert status == 200, body
        return body["predictions"]

    def post(self, value, path="/predict", headers=""):
        """Post a value as JSON; return the status, the headers and what came back."""
        body = json.dumps(value).encode()
        with self.connect() as connection:
            connection.sendall(request(path, body, headers))
            return read_answer(connection)

    def close(self):
        """Stop listening, and end the loop."""
        self._served.cancel()
        self.running.wait(self.server.stop())
        self.running.close()


def started_server(model):
    """Start a server in front of a model; yield it, and close it in the end."""
    started = HttpHarness(model)
    yield started
    started.close()


def request(path, body, headers="", method="POST"):
    """Write a request."""
    head = f"{method} {path} HTTP/1.1\r\nhost: t\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def reset(connection):
    """Reset a connection, so that the server notices that its client has disconnected."""
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
    """Return one response: status, headers, and its body as JSON."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers = {}
        while line := file.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = file.read(int(headers["content-length"]))
    return status, headers, json.loads(body) if body else None


def status_of(answer):
    """Return the status of a raw response; None where there is none."""
    return int(answer.split()[1]) if answer else None


def body_of(answer):
    """Return the body of a raw response that is not chunked."""
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def head(*lines, path="/predict", method="POST"):
    """Write the head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


def chunked(*chunks):
    """Write a body in chunks, the last one included."""
    parts = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b"")]
    return b"".join(parts)


def next_json(connection):
    """Read exactly one response; return its body."""
    return next_answer(connection)[1]


def next_answer(connection):
    """Read exactly one response; return its head, in lower case, and its body."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += connection.recv(1)
    length = int(raw.lower().split(b"content-length:")[1].split()[0])
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return raw.lower(), json.loads(body)


def padded(length):
    """Make a legal body of this many bytes."""
    return BODY + b" " * (length - len(BODY))


def begun(http_server):
    """Whether a request has begun to arrive, and is being read."""
    return any(c.reading and not c.idle for c in http_server.server.connections)


async def until(true):
    """Let the loop run until something is true on it."""
    while not true():  # noqa: ASYNC110 (there is no event to wait for)
        await asyncio.sleep(0)
