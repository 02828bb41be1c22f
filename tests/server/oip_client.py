"""A client of the Open Inference Protocol over HTTP."""

import json

from server.protocols.oip import DATATYPES

INFER = "/v2/models/fake/infer"
X = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3, 4]]}
GOOD = {"inputs": [X]}
SUMS = {"name": "y", "datatype": "FP32", "shape": [2], "data": [3.0, 7.0]}
LENGTH = "Inference-Header-Content-Length"


def tensor(array, name="x", **parameters):
    """Describe a tensor whose bytes come behind the JSON."""
    datatype = DATATYPES[array.dtype.name]
    parameters |= {"binary_data_size": array.nbytes}
    shape = list(array.shape)
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": parameters}


def packed(message, *arrays):
    """Write JSON with bytes behind it; returns the body and its headers."""
    head = json.dumps(message).encode()
    body = head + b"".join(array.tobytes() for array in arrays)
    return {"data": body, "headers": {LENGTH: str(len(head))}}


def unpacked(answer):
    """Read a binary answer: its JSON, and the bytes of each output by name."""
    assert answer.status_code == 200, answer.get_data()
    assert answer.mimetype == "application/octet-stream"
    length = int(answer.headers[LENGTH])
    body = answer.get_data()
    message = json.loads(body[:length])
    start = length
    found = {}
    for output in message["outputs"]:
        if "binary_data_size" in output.get("parameters", {}):
            end = start + output["parameters"]["binary_data_size"]
            found[output["name"]] = body[start:end]
            start = end
    assert start == len(body)
    return message, found


def still_good(client):
    """Check that a good request gets its response."""
    assert client.post(INFER, json=GOOD).get_json()["outputs"] == [SUMS]
