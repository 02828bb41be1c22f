"""A Cloud Storage that fails as it is scripted to, on a real socket, for the real client."""

import base64
import http.server
import json
import threading
import urllib.parse
from collections import defaultdict
from typing import NamedTuple

import google_crc32c

from runtime.storage.uri import CloudFolder
from tests.serving import TIMEOUT_S

BUCKET = "models"
FOLDER = CloudFolder(BUCKET, "a/")


class Asked(NamedTuple):
    """A request for an object's bytes: its name, which generation, and from which byte."""

    name: str
    generation: int
    start: int


class FakeGcs:
    """A bucket.

    Attributes:
      url: for STORAGE_EMULATOR_HOST.
      objects: name to bytes and generation.
      looked: names whose metadata was asked for, in order.
      asked: requests for bytes, in order.
      uploaded: names of objects that clients wrote, in order.
      before: name to functions; one is called before each request for the object's bytes, and
        returns what to do instead of answering: a status, how many bytes to send before the
        connection is cut, or a stall. None answers.
      outlasted: name of each stall that was not cancelled, until it ended by itself.
    """

    def __init__(self):
        self.objects, self.metadata = {}, {}
        self.looked, self.asked, self.outlasted = [], [], []
        self.uploaded = []
        self._changed = threading.Condition()
        self.before = defaultdict(list)
        bucket = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                bucket.answer(self)

            def do_POST(self):
                bucket.take(self)

            def do_DELETE(self):
                bucket.delete(self)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def put(self, name, data, **metadata):
        """Store an object, in place of one that is there; `metadata` adds to its metadata."""
        _, generation = self.objects.get(name, (b"", 1000))
        self.objects[name] = data, generation + 1
        self.metadata[name] = metadata

    def upload(self, folder, prefix):
        """Store every file below a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())

    def answer(self, request):
        """Answer a request for metadata or for bytes."""
        url = urllib.parse.urlsplit(request.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        name = urllib.parse.unquote(url.path.rpartition("/")[2])
        if url.path.endswith("/o"):
            self._send_listing(request, url.path.split("/")[-2], query)
        elif "/o/" not in url.path:  # the client asks for the bucket behind our back, and may not
            refuse(request, 403, "no storage.buckets.get")
        elif "alt" in query:
            self._send_bytes(request, name, int(query["generation"]))
        else:
            self.looked.append(name)
            self._send_metadata(request, name)

    def take(self, request):
        """Store an upload of one request, if what is there has the generation that is asked for."""
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(request.path).query))
        body = request.rfile.read(int(request.headers["Content-Length"]))
        boundary = request.headers["Content-Type"].partition("boundary=")[2].strip("\"'").encode()
        _, about, content, _ = body.split(b"--" + boundary)
        about = json.loads(about.partition(b"\r\n\r\n")[2])
        data = content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        name = about["name"]
        scripted = self.before[f"upload of {name}"]
        _, generation = self.objects.get(name, (b"", 0))
        checksum = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
        fault = scripted.pop(0)() if scripted else None
        if isinstance(fault, Status):
            refuse(request, fault, "as scripted")
        elif int(query.get("ifGenerationMatch", generation)) != generation:
            refuse(request, 412, "conditionNotMet")
        elif about.get("crc32c", checksum) != checksum:
            refuse(request, 400, "Provided CRC32C is not that of the object")
        else:
            self.put(name, data)
            self.uploaded.append(name)
            if fault is None:
                send(request, 200, json.dumps(self._about(name)).encode())
            else:  # it is stored, and the client does not hear of it
                request.close_connection = True

    def delete(self, request):
        """Remove an object."""
        name = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path.rpartition("/")[2])
        del self.objects[name]
        send(request, 204, b"")

    def _send_metadata(self, request, name):
        scripted = self.before[f"metadata of {name}"]
        if status := scripted.pop(0)() if scripted else None:
            refuse(request, status, "as scripted")
        elif name not in self.objects:
            refuse(request, 404, f"No such object: {BUCKET}/{name}")
        else:
            send(request, 200, json.dumps(self._about(name)).encode())

    def _about(self, name):
        data, generation = self.objects[name]
        checksum = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
        about = {"name": name, "size": str(len(data)), "generation": str(generation)}
        return about | {"crc32c": checksum} | self.metadata.get(name, {})

    def _send_listing(self, request, bucket, query):
        scripted = self.before["listing"]
        if status := scripted.pop(0)() if scripted else None:
            refuse(request, status, "as scripted")
        elif bucket != BUCKET:
            refuse(request, 404, "The specified bucket does not exist.")
        else:
            prefix = query.get("prefix", "")
            names = [name for name in self.objects if name.startswith(prefix)]
            folders = set()
            if delimiter := query.get("delimiter"):
                deep = [name for name in names if delimiter in name.removeprefix(prefix)]
                names = [name for name in names if name not in deep]
                folders = {f"{prefix}{n.removeprefix(prefix).partition('/')[0]}/" for n in deep}
            page = {"items": [self._about(name) for name in names], "prefixes": sorted(folders)}
            send(request, 200, json.dumps(page).encode())

    def _send_bytes(self, request, name, generation):
        start = int(request.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        with self._changed:
            self.asked.append(Asked(name, generation, start))
            self._changed.notify_all()
        fault = self.before[name].pop(0)() if self.before[name] else None
        data, current = self.objects[name]
        if generation != current:
            refuse(request, 404, f"No such object: {BUCKET}/{name}#{generation}")
        elif fault is None:
            send(request, 206 if start else 200, data[start:])
        elif isinstance(fault, Stall):
            send(request, 206 if start else 200, data[start:], only=fault.size)
            if not fault.over.wait(TIMEOUT_S):
                self.outlasted.append(name)
        elif fault >= 400 and isinstance(fault, Status):
            refuse(request, fault, "as scripted")
        else:
            send(request, 206 if start else 200, data[start:], only=fault)

    def wait_for(self, name):
        """Wait until an object's bytes have been requested."""
        with self._changed:
            self._changed.wait_for(lambda: name in {asked.name for asked in self.asked})

    def close(self):
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Status(int):
    """A status to answer with."""


class Stall(NamedTuple):
    """So many bytes to send, and then nothing, though the connection stays."""

    size: int
    over: threading.Event


def refuse(request, status, message):
    """Answer with an error, as Cloud Storage writes it."""
    error = {"error": {"code": status, "message": message, "errors": []}}
    send(request, status, json.dumps(error).encode())


def send(request, status, body, only=None):
    """Answer; with `only`, cut the connection after so many bytes of the body."""
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body[:only])
    if only is not None:
        request.close_connection = True
