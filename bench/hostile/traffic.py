"""Bad texts sent to a running server, a good one beside each; what became of both."""

import collections
import contextlib
import http.client
import json
import random
from collections.abc import Iterator
from typing import Any

import grpc

from bench.hostile.protocols import PROTOCOLS, Protocol, Request, binary, elements, plain
from bench.hostile.texts import BROKEN, GOOD, KINDS, LYING, Expected, Kind, Value, lying, of_text
from server.grpc.server import INFERENCE
from server.protos import inference_pb2 as pb

TIMEOUT_S = 120
_BINARY, _PLAIN, _TYPED, _RAW = "binary", "plain text", "gRPC, typed", "gRPC, raw"
_REFUSED = (400, 413)
_CODES = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
# More than any message has that names what was wrong.
_LONGEST = 1000


class Faults(collections.Counter[str]):
    """What went wrong, and how often."""


class Traffic:
    """Sends bad texts to a server.

    Args:
      port: of HTTP.
      grpc_port: of gRPC.

    Attributes:
      sent: kind and protocol to the number of requests.
      faults: what should not have been, and how often.
    """

    def __init__(self, port: int, grpc_port: int) -> None:
        self._port = port
        self._beside = self._connect()
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{grpc_port}", [("grpc.max_send_message_length", -1)]
        )
        self._infer = self._channel.unary_unary(
            f"/{INFERENCE}/ModelInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelInferResponse.FromString,
        )
        self.sent: collections.Counter[tuple[str, str]] = collections.Counter()
        self.faults = Faults()
        good = _json_request("Vertex", of_text(GOOD))
        self._good_request = good
        self._send_good()
        self._good_body = _answer(self._beside)[1]
        [self._good] = json.loads(self._good_body)["predictions"]
        self._good_message = _message([GOOD.encode()], typed=True)
        self._good_bytes = self._infer(self._good_message).raw_output_contents[0]

    def close(self) -> None:
        """Close its connections."""
        self._beside.close()
        self._channel.close()

    def send(self, each: int, seed: int) -> None:
        """Send so many of each kind, by the protocols in turn."""
        for name, kind in KINDS.items():
            rng = random.Random(f"{seed}-{name}")  # noqa: S311 (no secret)
            for protocol, value in _turns(kind, each, rng):
                self.sent[name, protocol] += 1
                self._try(name, protocol, value, kind.expected)
        for name, change in BROKEN.items():
            rng = random.Random(f"{seed}-{name}")  # noqa: S311 (no secret)
            for i in range(each):
                protocol = list(PROTOCOLS)[i % len(PROTOCOLS)]
                good = of_text(GOOD).json or b""
                request = PROTOCOLS[protocol].write([good, good])
                broken = request._replace(body=change(request.body, rng))
                self.sent[name, protocol] += 1
                self._judge(name, protocol, broken, "refused")
        rng = random.Random(f"{seed}-{LYING}")  # noqa: S311 (no secret)
        for i in range(each):
            protocol = (_BINARY, _RAW)[i % 2]
            data = lying([GOOD.encode(), b"a"], rng)
            self.sent[LYING, protocol] += 1
            if protocol == _RAW:
                self._call(LYING, protocol, _raw_message(2, data), "refused")
            else:
                self._judge(LYING, protocol, binary(2, data), "refused")

    def _try(self, name: str, protocol: str, value: Value, expected: Expected) -> None:
        texts = [GOOD.encode(), value.raw or b"", GOOD.encode()]
        if protocol in (_TYPED, _RAW):
            self._call(name, protocol, _message(texts, typed=protocol == _TYPED), expected)
        elif protocol == _BINARY:
            self._judge(name, protocol, binary(3, elements(texts)), expected)
        elif protocol == _PLAIN:
            self._judge(name, protocol, plain(value.raw or b""), expected)
        else:
            good = of_text(GOOD)
            request = _json_request(protocol, good, value, good)
            self._judge(name, protocol, request, expected)

    def _judge(self, name: str, protocol: str, request: Request, expected: Expected) -> None:
        """Send a request and, before its answer, a good one; judge both answers."""
        found = ""
        with contextlib.closing(self._connect()) as connection:
            try:
                connection.request("POST", request.path, request.body, request.headers)
                self._send_good()
                status, body = _answer(connection)
                found = self._wrong(protocol, status, body, expected)
            except (OSError, http.client.HTTPException) as error:
                found = type(error).__name__
                self._beside.close()
                self._send_good()
            if (answer := _answer(self._beside)) != (200, self._good_body):
                self.faults[f"{name}, {protocol}: its neighbour got {answer[0]}"] += 1
        if found:
            self.faults[f"{name}, {protocol}: {found}"] += 1

    def _wrong(self, protocol: str, status: int, body: bytes, expected: Expected) -> str:
        """Return what is wrong with the answer to a bad text, or nothing."""
        if status == 200 and protocol in PROTOCOLS:
            return self._wrong_rows(PROTOCOLS[protocol], json.loads(body), expected)
        if status == 200:
            return "answered" if expected == "refused" else ""
        answer = json.loads(body) if body.startswith(b"{") else {}
        if status not in _REFUSED or set(answer) != {"error", "code", "request_id"}:
            return f"{status} {body[:100]!r}"
        if "\n" in answer["error"] or len(answer["error"]) > _LONGEST:
            return f"an error of {len(answer['error'])} characters"
        return f"refused: {answer['error'][:200]}" if expected == "answered" else ""

    def _wrong_rows(self, protocol: Protocol, answer: Any, expected: Expected) -> str:
        rows = protocol.read(answer)
        if [rows[0], rows[-1]] != [self._good, self._good]:
            return "other answers to the good texts beside it"
        if protocol.each and expected != "either" and _is_error(rows[1]) != (expected == "refused"):
            return f"{rows[1]}, expected to be {expected}"
        return "answered" if expected == "refused" and not protocol.each else ""

    def _call(
        self, name: str, protocol: str, message: pb.ModelInferRequest, expected: Expected
    ) -> None:
        """Do the same by gRPC."""
        bad = self._infer.future(message, timeout=TIMEOUT_S)
        good = self._infer.future(self._good_message, timeout=TIMEOUT_S)
        found = ""
        try:
            answer = bad.result().raw_output_contents[0]
            size = len(self._good_bytes)
            if [answer[:size], answer[-size:]] != [self._good_bytes] * 2:
                found = "other answers to the good texts beside it"
            elif expected == "refused":
                found = "answered"
        except grpc.RpcError as error:
            if error.code() not in _CODES or len(error.details()) > _LONGEST:
                found = f"{error.code().name} {error.details()[:100]}"
            elif expected == "answered":
                found = f"refused: {error.details()[:200]}"
        try:
            if good.result().raw_output_contents[0] != self._good_bytes:
                self.faults[f"{name}, {protocol}: its neighbour got another answer"] += 1
        except grpc.RpcError as error:
            self.faults[f"{name}, {protocol}: its neighbour got {error.code().name}"] += 1
        if found:
            self.faults[f"{name}, {protocol}: {found}"] += 1

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)

    def _send_good(self) -> None:
        path, body, headers = self._good_request
        self._beside.request("POST", path, body, headers)


def _turns(kind: Kind, each: int, rng: random.Random) -> Iterator[tuple[str, Value]]:
    """Yield bad texts, each with one of the protocols that can have it, in turn."""
    sent = turn = 0
    names = [*PROTOCOLS, _BINARY, _PLAIN, _TYPED, _RAW]
    while sent < each:
        protocol, value = names[turn % len(names)], kind.make(rng)
        turn += 1
        if (value.json if protocol in PROTOCOLS else value.raw) is None:
            continue
        # What is no text alone can be one of its columns, and nothing is an empty body of text.
        if protocol == _PLAIN and not value.raw:
            continue
        sent += 1
        yield protocol, value


def _json_request(protocol: str, *values: Value) -> Request:
    return PROTOCOLS[protocol].write([value.json or b"" for value in values])


def _message(texts: list[bytes], *, typed: bool) -> pb.ModelInferRequest:
    if not typed:
        return _raw_message(len(texts), elements(texts))
    made = pb.ModelInferRequest(model_name="small")
    tensor = made.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(texts)
    return made


def _raw_message(rows: int, data: bytes) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="small")
    made.inputs.add(name="text", datatype="BYTES", shape=[rows])
    made.raw_input_contents.append(data)
    return made


def _answer(connection: http.client.HTTPConnection) -> tuple[int, bytes]:
    answer = connection.getresponse()
    return answer.status, answer.read()


def _is_error(row: Any) -> bool:
    return isinstance(row, dict) and set(row) == {"error"}
