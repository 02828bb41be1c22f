"""Traffic over gRPC: calls and streams, good and bad, some of them given up."""

import asyncio

import grpc
import numpy as np

from bench.soak.answers import Answers, Asked
from bench.soak.tally import Tally
from server.grpc.server import INFERENCE
from server.protos import inference_pb2 as pb

AT_ONCE = 8


def message(answers: Answers, asked: Asked, identity: str = "") -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name=answers.model, id=identity)
    for name, array in asked.inputs.items():
        made.inputs.add(name=name, datatype=answers.datatype(name), shape=array.shape)
        made.raw_input_contents.append(array.tobytes())
    return made


def bad(answers: Answers, rng: np.random.Generator) -> tuple[bytes, grpc.StatusCode]:
    made = message(answers, answers.pick(rng))
    made.model_name = "other"
    short = message(answers, answers.pick(rng))
    del short.raw_input_contents[-1]
    return [
        (b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (b"x" * (1 << 21), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (made.SerializeToString(), grpc.StatusCode.NOT_FOUND),
        (short.SerializeToString(), grpc.StatusCode.INVALID_ARGUMENT),
    ][rng.integers(4)]


def wrong(answers: Answers, asked: Asked, answer: pb.ModelInferResponse) -> str:
    names = [output.name for output in answer.outputs]
    return answers.wrong(asked, dict(zip(names, answer.raw_output_contents, strict=True)))


async def ask(port: int, answers: Answers, tally: Tally, rng: np.random.Generator) -> None:
    """Make calls, and cancel some, on a channel for every hundred."""
    while not tally.over:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(
                f"/{INFERENCE}/ModelInfer", None, pb.ModelInferResponse.FromString
            )
            for _ in range(100):
                await ask_once(call, answers, tally, rng)
                if tally.over:
                    return


async def ask_once(
    call: grpc.aio.UnaryUnaryMultiCallable,
    answers: Answers,
    tally: Tally,
    rng: np.random.Generator,
) -> None:
    """Make a call."""
    kind = rng.integers(10)
    if kind < 2:
        request, expected = bad(answers, rng)
        try:
            await call(request)
        except grpc.aio.AioRpcError as error:
            fault = "" if error.code() is expected else f"{request[:40]!r}: {error}"
            tally.count("refused call", fault)
        return
    asked = answers.pick(rng)
    pending = call(message(answers, asked).SerializeToString())
    if kind == 2:
        await asyncio.sleep(rng.random() * 0.002)
        pending.cancel()
        tally.count("cancelled call")
    else:
        try:
            tally.count("call", wrong(answers, asked, await pending))
        except grpc.aio.AioRpcError as error:
            tally.count("call", str(error.details()))


async def stream(port: int, answers: Answers, tally: Tally, rng: np.random.Generator) -> None:
    """Open one stream after the other; some end well and some are cancelled."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.stream_stream(
            f"/{INFERENCE}/ModelStreamInfer", None, pb.ModelStreamInferResponse.FromString
        )
        while not tally.over:
            sent: dict[str, Asked | None] = {}
            capacity = asyncio.Semaphore(AT_ONCE)
            pending = method(requests(answers, rng, sent, capacity))
            cancel_at = int(rng.integers(200))
            async for answer in pending:
                capacity.release()
                asked = sent.pop(answer.infer_response.id)
                if asked is None:
                    tally.count("refused in a stream", "" if answer.error_message else "answered")
                else:
                    fault = answer.error_message or wrong(answers, asked, answer.infer_response)
                    tally.count("in a stream", fault)
                if tally.counts["in a stream"] % 200 == cancel_at or tally.over:
                    pending.cancel()
                    tally.count("cancelled stream")
                    break


async def requests(
    answers: Answers,
    rng: np.random.Generator,
    sent: dict[str, Asked | None],
    capacity: asyncio.Semaphore,
):
    """Return a stream's requests, one in ten of them for a model that is not there."""
    for number in range(100):
        await capacity.acquire()
        asked = answers.pick(rng)
        made = message(answers, asked, str(number))
        sent[made.id] = asked
        if rng.integers(10) == 0:
            made.model_name, sent[made.id] = "other", None
        yield made.SerializeToString()
