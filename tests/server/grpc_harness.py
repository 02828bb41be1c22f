"""The gRPC server on a real socket, in this process, and a client that calls it."""

import grpc
import numpy as np

from server.config import ServerConfig
from server.grpc.http2_server import Http2Server
from server.grpc.server import GrpcServer
from server.grpc.services import INFERENCE
from server.protocols.oip import DATATYPES
from server.protos import inference_pb2 as pb
from tests.server.fakes import FakeModel, Running

FRONTS = {"aio": GrpcServer, "ngh2": Http2Server}


class GrpcHarness:
    """A server that listens, and a channel to it.

    Attributes:
      model: answers.
      running: the service's loop.
      server: the server.
      port: where it listens.
    """

    front = "aio"

    def __init__(self, model=None, *, load=True, options=(), limits=None, **config):
        self.model = model or FakeModel()
        self.running = Running(**(limits or {}))
        self.service = self.running.service
        self._config = ServerConfig(bundle="unused", host="127.0.0.1", grpc_port=0, **config)
        self.port = self.running.wait(self._start())
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options=list(options))
        if load:
            self.running.open(self.model)

    async def _start(self):
        self.server = FRONTS[self.front](self.service, self._config)
        return await self.server.start()

    def on_loop(self, function, *arguments):
        """Call a function on the service's loop, and return its result."""

        async def call():
            return function(*arguments)

        return self.running.wait(call())

    def calls_without_message(self):
        """Return how many calls have begun, and have sent no whole message."""
        if isinstance(self.server, GrpcServer):
            receiver = self.server._receiver
            return receiver.receiving + receiver.waiting
        return sum(
            not call._asked
            for connection in self.server._connections
            for call in connection._calls.values()
        )

    def call_unary(self, name, request, answer, service=INFERENCE):
        """Call a unary method that is no inference."""
        return self.channel.unary_unary(
            f"/{service}/{name}", lambda m: m.SerializeToString(), answer.FromString
        )(request, timeout=30)

    @property
    def infer(self):
        """Return ModelInfer; messages may be bytes."""
        return self.channel.unary_unary(
            f"/{INFERENCE}/ModelInfer", as_bytes, pb.ModelInferResponse.FromString
        )

    @property
    def stream(self):
        """Return ModelStreamInfer; messages may be bytes."""
        return self.channel.stream_stream(
            f"/{INFERENCE}/ModelStreamInfer", as_bytes, pb.ModelStreamInferResponse.FromString
        )

    def ask(self, *numbers):
        """Request the sums of rows [n, 0], and return them."""
        return array_of(self.infer(rows(*numbers), timeout=30), "y", np.float32).tolist()

    def close(self):
        """Stop listening, and end the loop."""
        self.channel.close()
        self.running.wait(self.server.stop())
        self.running.close()


def as_bytes(message):
    """Serialize a message that is not bytes already."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def request(arrays, identity="", outputs=(), **parameters):
    """Make a request for arrays by name, as bytes; parameters are given as (kind, value)."""
    made = pb.ModelInferRequest(model_name="fake", id=identity)
    for name, array in arrays.items():
        datatype = DATATYPES[array.dtype.name]
        made.inputs.add(name=name, datatype=datatype, shape=array.shape)
        made.raw_input_contents.append(array.tobytes())
    for name in outputs:
        made.outputs.add(name=name)
    for name, (kind, value) in parameters.items():
        setattr(made.parameters[name], f"{kind}_param", value)
    return made


def rows(*numbers, **options):
    """Make a request for the sums of rows [n, 0]."""
    array = np.array([[n, 0] for n in numbers], np.float32).reshape(-1, 2)
    return request({"x": array}, **options)


def array_of(response, name, dtype):
    """Return an output as an array."""
    index = [output.name for output in response.outputs].index(name)
    data = np.frombuffer(response.raw_output_contents[index], dtype)
    return data.reshape(response.outputs[index].shape)


def refused(call):
    """Make a call that is refused; return its status and text."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError("expected an error, got an answer")
