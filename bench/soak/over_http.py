"""Traffic over HTTP: every dialect, and everything that clients do wrong."""

import asyncio
import contextlib
import gzip
import json
import socket
import struct

import numpy as np

from bench.soak.answers import Answers, Asked
from bench.soak.tally import Tally

LENGTH = "inference-header-content-length"


def head(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: soak", *headers]
    if not any(h.startswith(("content-length", "transfer-encoding")) for h in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    return head(path, body, *headers) + body


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


class Good:
    """Requests that are answered, in each dialect, and their answers."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._infer = f"/v2/models/{answers.model}/infer"
        self._predict = f"/v1/models/{answers.model}:predict"
        self.kinds = [self.binary]
        if answers.in_json:
            self.kinds += [self.oip, self.zipped, self.chunks, self.columns, self.vertex]

    def binary(self, asked: Asked) -> tuple[bytes, object]:
        inputs = [
            {**tensor, "parameters": {"binary_data_size": asked.inputs[tensor["name"]].nbytes}}
            for tensor in self._heads(asked)
        ]
        parameters = {"binary_data_output": True}
        text = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
        body = text + b"".join(array.tobytes() for array in asked.inputs.values())
        return post(self._infer, body, f"{LENGTH}: {len(text)}"), self._from_binary

    def oip(self, asked: Asked) -> tuple[bytes, object]:
        return post(self._infer, self._oip(asked)), self._from_oip

    def zipped(self, asked: Asked) -> tuple[bytes, object]:
        body = gzip.compress(self._oip(asked))
        return post(self._infer, body, "content-encoding: gzip"), self._from_oip

    def chunks(self, asked: Asked) -> tuple[bytes, object]:
        request = head(self._infer, b"", "transfer-encoding: chunked")
        return request + chunked(self._oip(asked), 7), self._from_oip

    def columns(self, asked: Asked) -> tuple[bytes, object]:
        body = {"inputs": {name: array.tolist() for name, array in asked.inputs.items()}}
        return post(self._predict, json.dumps(body).encode()), self._from_columns

    def vertex(self, asked: Asked) -> tuple[bytes, object]:
        rows = [
            {name: array[i].tolist() for name, array in asked.inputs.items()}
            for i in range(asked.rows)
        ]
        return post("/predict", json.dumps({"instances": rows}).encode()), self._from_vertex

    def _heads(self, asked: Asked) -> list[dict]:
        return [
            {"name": name, "datatype": self._answers.datatype(name), "shape": array.shape}
            for name, array in asked.inputs.items()
        ]

    def _oip(self, asked: Asked) -> bytes:
        inputs = [
            {**tensor, "data": asked.inputs[tensor["name"]].ravel().tolist()}
            for tensor in self._heads(asked)
        ]
        return json.dumps({"inputs": inputs}).encode()

    def _from_oip(self, _: Asked, __: dict, body: bytes) -> dict:
        return {output["name"]: output["data"] for output in json.loads(body)["outputs"]}

    def _from_binary(self, _: Asked, headers: dict, body: bytes) -> dict:
        at, found = int(headers[LENGTH]), {}
        for output in json.loads(body[:at])["outputs"]:
            size = output["parameters"]["binary_data_size"]
            found[output["name"]] = body[at : at + size]
            at += size
        return found

    def _from_columns(self, asked: Asked, _: dict, body: bytes) -> dict:
        outputs = json.loads(body)["outputs"]
        return outputs if isinstance(outputs, dict) else dict.fromkeys(asked.outputs, outputs)

    def _from_vertex(self, asked: Asked, _: dict, body: bytes) -> dict:
        predictions = json.loads(body)["predictions"]
        if len(predictions) != asked.rows:
            raise ValueError(f"{len(predictions)} predictions for {asked.rows} instances")
        if self._answers.labelled:  # in words of its own; the other dialects are compared
            return dict(asked.outputs)
        if len(asked.outputs) == 1:
            return dict.fromkeys(asked.outputs, predictions)
        return {name: [p[name] for p in predictions] for name in asked.outputs}


def bad(model: str) -> dict[bytes, int]:
    """Return requests that are refused, and the status of each refusal."""
    infer, end = f"/v2/models/{model}/infer", "connection: close"
    huge = [{"name": "none", "datatype": "FP32", "shape": [2**62, 2**62], "data": []}]
    return {
        post("/nothing", b"", end): 404,
        post("/v2/models/other/infer", b"{}", end): 404,
        post("/predict", b'{"instances": [[', end): 400,
        post("/predict", b"[" * 50_000, end): 400,
        post("/predict", b'{"instances": "none"}', end): 400,
        post("/predict", b"not gzip", end, "content-encoding: gzip"): 400,
        post("/predict", gzip.compress(b" " * (1 << 24)), end, "content-encoding: gzip"): 413,
        post("/predict", b"", end, "content-type: text/html"): 415,
        post(infer, json.dumps({"inputs": huge}).encode(), end): 400,
        post(infer, b"{}", end, f"{LENGTH}: 99"): 400,
        head("/predict", b"", end, method="DELETE"): 405,
        head("/predict", b"", end, "content-length: 99999999"): 413,
        head("/predict", b"", "transfer-encoding: chunked") + chunked(b" " * (1 << 21), 4096): 413,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": 400,
        b"GET / HTTP/1.1\r\nx: " + b"y" * 400_000 + b"\r\n\r\n": 431,
    }


async def ask_well(port: int, answers: Answers, tally: Tally, rng: np.random.Generator) -> None:
    """Ask over one connection after the other, a hundred requests on each."""
    good = Good(answers)
    while not tally.over:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(100):
            asked = answers.pick(rng)
            kind = good.kinds[rng.integers(len(good.kinds))]
            request, read = kind(asked)
            writer.write(request)
            status, headers, body = await read_answer(reader)
            if status == 200:
                tally.count(kind.__name__, answers.wrong(asked, read(asked, headers, body)))
            else:
                tally.count(kind.__name__, f"status {status}: {body[:200]!r}")
            if tally.over:
                break
        writer.close()


async def ask_badly(port: int, answers: Answers, tally: Tally, rng: np.random.Generator) -> None:
    """Send what is refused, what is cut, and what is not waited for."""
    requests = list(bad(answers.model).items())
    good = Good(answers)
    while not tally.over:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        kind = rng.integers(4)
        if kind == 0:
            request, expected = requests[rng.integers(len(requests))]
            with contextlib.suppress(ConnectionError):
                writer.write(request)
                status, _, _ = await read_answer(reader)
                tally.count("refused", "" if status == expected else f"{request[:80]!r}: {status}")
        else:
            request, _ = good.kinds[rng.integers(len(good.kinds))](answers.pick(rng))
            if kind == 1:
                request = request[: rng.integers(len(request))]
            writer.write(request)
            if kind == 3:
                reset(writer)
            tally.count(("", "cut short", "not waited for", "reset")[kind])
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def reset(writer: asyncio.StreamWriter) -> None:
    """Have the connection end with a reset."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read status, headers and body; status 0 where there is no response."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        first, *lines = text.splitlines()
        headers = dict(line.split(": ", 1) for line in lines if line)
        return (
            int(first.split()[1]),
            headers,
            await reader.readexactly(int(headers["content-length"])),
        )
    except asyncio.IncompleteReadError:
        return 0, {}, b""
