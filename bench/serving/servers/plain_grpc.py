"""The classifier behind grpc.aio as its documentation has it: no batching, a row at a time.

python -m bench.serving.servers.plain_grpc PORT BUNDLE
"""

import asyncio
import sys

import grpc
import numpy as np

from runtime import load
from runtime.program import use_sync_dispatch
from server.protos import inference_pb2 as pb


async def main(port: str, bundle: str) -> None:
    use_sync_dispatch()
    model = load(bundle)
    (given,), (wanted,) = model.signature.inputs, model.signature.outputs

    async def infer(request: pb.ModelInferRequest, _) -> pb.ModelInferResponse:
        shape = tuple(request.inputs[0].shape)
        rows = np.frombuffer(request.raw_input_contents[0], given.dtype).reshape(shape)
        answer = model.predict({given.name: rows})[wanted.name]
        response = pb.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name=wanted.name, datatype="FP32", shape=answer.shape)
        response.raw_output_contents.append(answer.tobytes())
        return response

    handler = grpc.unary_unary_rpc_method_handler(
        infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
    )
    methods = grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService", {"ModelInfer": handler}
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((methods,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
