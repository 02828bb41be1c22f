"""Clients that know their expected responses: each request has a number, and so do all of its rows."""

import asyncio
import json

import grpc
import numpy as np

from server.grpc.server import INFERENCE
from server.protos import inference_pb2 as pb
from tests.server.http_harness import request

# What the model of `wide_server` adds.
SEVEN = 7


class Connection:
    """An HTTP connection; one request after the other.

    Args:
      port: of a server.
    """

    def __init__(self, port):
        self._port = port

    async def __aenter__(self):
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_):
        self._writer.close()

    async def ask(self, path, body, headers=""):
        """Post a body; return status, headers and body of the answer."""
        self._writer.write(request(path, body, headers))
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        first, *lines = head.splitlines()
        found = dict(line.split(": ", 1) for line in lines if line)
        body = await self._reader.readexactly(int(found["content-length"]))
        return int(first.split()[1]), found, body


def rows_of(number, count):
    """Return rows that no other request has."""
    return np.stack([np.full(count, number), np.arange(count)], axis=1)


def _vertex(rows):
    return "/predict", json.dumps({"instances": rows.tolist()}).encode(), ""


def _columns(rows):
    return "/v1/models/wide:predict", json.dumps({"inputs": rows.tolist()}).encode(), ""


def _tensor(rows, **more):
    return {"name": "x", "datatype": "INT64", "shape": list(rows.shape), **more}


def _oip(rows):
    body = {"inputs": [_tensor(rows, data=rows.ravel().tolist())]}
    return "/v2/models/wide/infer", json.dumps(body).encode(), ""


def _binary(rows):
    tensor = _tensor(rows, parameters={"binary_data_size": rows.nbytes})
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(asked).encode()
    headers = f"inference-header-content-length: {len(head)}\r\n"
    headers += "content-type: application/octet-stream\r\n"
    return "/v2/models/wide/infer", head + rows.tobytes(), headers


def _from_tensor(_, body):
    (output,) = json.loads(body)["outputs"]
    return np.reshape(output["data"], output["shape"])


def _from_binary(headers, body):
    length = int(headers["inference-header-content-length"])
    (output,) = json.loads(body[:length])["outputs"]
    return np.frombuffer(body[length:], np.int64).reshape(output["shape"])


# How rows are requested, and how they are read from the response's headers and body.
DIALECTS = (
    (_vertex, lambda _, body: np.array(json.loads(body)["predictions"])),
    (_columns, lambda _, body: np.array(json.loads(body)["outputs"])),
    (_oip, _from_tensor),
    (_binary, _from_binary),
)


async def ask_http(port, work, wrong, *, until_closing=False):
    """Send the requests of `work` over one connection, and record the wrong responses.

    Args:
      port: of HTTP.
      work: an iterator of (number, rows), shared among clients.
      wrong: numbers of requests whose answer is not theirs are added to it.
      until_closing: stop at the first answer that says that the connection ends.
    """
    async with Connection(port) as connection:
        for number, count in work:
            write, read = DIALECTS[number % len(DIALECTS)]
            rows = rows_of(number, count)
            status, headers, body = await connection.ask(*write(rows))
            if status != 200 or not np.array_equal(read(headers, body), rows + SEVEN):
                wrong.append((number, status, body[:200]))
            if until_closing and headers.get("connection") == "close":
                return


def message(number, count):
    """Write a request of gRPC."""
    rows = rows_of(number, count)
    made = pb.ModelInferRequest(model_name="wide", id=str(number))
    made.inputs.add(name="x", datatype="INT64", shape=rows.shape)
    made.raw_input_contents.append(rows.tobytes())
    return made


def is_answer(answer, number, count):
    """Whether a message is the response to `message`."""
    expected = (rows_of(number, count) + SEVEN).tobytes()
    return answer.id == str(number) and answer.raw_output_contents[0] == expected


class Calls:
    """The methods that infer.

    Args:
      channel: of grpc.aio.
    """

    def __init__(self, channel):
        self.unary = channel.unary_unary(
            f"/{INFERENCE}/ModelInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelInferResponse.FromString,
        )
        self.stream = channel.stream_stream(
            f"/{INFERENCE}/ModelStreamInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelStreamInferResponse.FromString,
        )


def channel(port):
    """Open a channel to a server."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}")


async def ask_grpc(calls, work, wrong):
    """Send unary calls, one after the other."""
    for number, count in work:
        if not is_answer(await calls.unary(message(number, count)), number, count):
            wrong.append(number)


async def ask_stream(calls, work, wrong, at_once):
    """Ask over one stream with so many requests under way."""
    room, asked = asyncio.Semaphore(at_once), {}

    async def requests():
        for number, count in work:
            await room.acquire()
            asked[str(number)] = number, count
            yield message(number, count)

    async for answer in calls.stream(requests()):
        room.release()
        made = answer.infer_response
        if answer.error_message or not is_answer(made, *asked.pop(made.id, (None, 0))):
            wrong.append((made.id, answer.error_message))
    wrong += asked
