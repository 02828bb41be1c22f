"""Images in every protocol of HTTP and gRPC: files by their type, and pixels as before."""

import base64
import gzip

import numpy as np
import tritonclient.grpc
import tritonclient.http
from pytest import fixture, mark, param

from tests.image_files import plain
from tests.server.grpc_harness import GrpcHarness
from tests.server.http_harness import started_server
from tests.server.image_model import WITH_AGE, ImageModel
from tests.server.protocols.test_texts import ask

pytestmark = mark.e2e

RED, BLUE = plain(200, 10, 20), plain(1, 2, 250)
MEANS = [[200.0, 10.0, 20.0], [1.0, 2.0, 250.0]]
PREDICT, COLUMNS, INFER = "/predict", "/v1/models/fake:predict", "/v2/models/fake/infer"
BOUNDARY = "----limit"


@fixture(scope="module")
def server():
    """Images alone."""
    yield from started_server(ImageModel())


@fixture(scope="module")
def aged():
    """Images, and a number beside each."""
    yield from started_server(ImageModel(signature=WITH_AGE))


@fixture(scope="module")
def grpc_server():
    """The same over gRPC."""
    made = GrpcHarness(ImageModel())
    yield made
    made.close()


def b64(data):
    """Return a file in JSON."""
    return {"b64": base64.b64encode(data).decode()}


def form(*parts, boundary=BOUNDARY):
    """Return a body of a form."""
    found = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\n%s\r\n'
        % (boundary.encode(), name.encode(), data)
        for name, data in parts
    ]
    return b"".join(found) + f"--{boundary}--\r\n".encode()


def ask_form(server, body, boundary=BOUNDARY, path=PREDICT):
    """Send a form."""
    return ask(server, path, body, content_type=f"multipart/form-data; boundary={boundary}")


@mark.parametrize(
    "instances",
    [
        [b64(RED), b64(BLUE)],
        [{"image": b64(RED)}, {"image": b64(BLUE)}],
        [[b64(RED)], [b64(BLUE)]],
    ],
    ids=["bare", "named", "by-position"],
)
@mark.parametrize("path", [PREDICT, COLUMNS])
def test_rows_are_images(server, path, instances):
    """Rows of Vertex AI and TensorFlow Serving, as batch prediction sends files and records."""
    assert ask(server, path, {"instances": instances}) == (200, {"predictions": MEANS})


@mark.parametrize("inputs", [[b64(RED), b64(BLUE)], {"image": [b64(RED), b64(BLUE)]}])
def test_columns_are_images(server, inputs):
    """TensorFlow Serving's columns, by name or by themselves."""
    assert ask(server, COLUMNS, {"inputs": inputs}) == (200, {"outputs": MEANS})


def test_pixels_are_tensors_under_the_same_name(server):
    """An array is pixels, in the size of the program; the type that is sent decides, not the content."""
    pixels = np.full((1, 4, 6, 3), 7).tolist()
    expected = [[7.0, 7.0, 7.0]]
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 4, 6, 3], "data": pixels}

    for instance in (pixels[0], {"image": pixels[0]}):
        assert ask(server, PREDICT, {"instances": [instance]})[1] == {"predictions": expected}
    assert ask(server, COLUMNS, {"inputs": {"image": pixels}})[1] == {"outputs": expected}
    assert ask(server, INFER, {"inputs": [tensor]})[1]["outputs"][0]["data"] == expected[0]


def test_a_body_is_an_image(server):
    """A body that is an image file is one image, whichever of the three types it has; it may be compressed."""
    for media in ("image/jpeg", "image/png", "Image/WebP"):
        for path in (PREDICT, COLUMNS):
            answer = ask(server, path, RED, content_type=media)
            assert answer == (200, {"predictions": MEANS[:1]})
    packed = gzip.compress(RED)
    answer = ask(server, PREDICT, packed, content_type="image/png", content_encoding="gzip")
    assert answer == (200, {"predictions": MEANS[:1]})


def test_a_form_has_images(server):
    """Each part of a form is a row, as curl -F and browsers send files."""
    for path in (PREDICT, COLUMNS):
        body = form(("image", RED), ("image", BLUE))
        assert ask_form(server, body, path=path) == (200, {"predictions": MEANS})


def test_tensors_stand_beside_images(aged):
    """An input other than the image is a tensor beside it."""
    rows = [{"image": b64(RED), "age": 1}, {"image": b64(BLUE), "age": 2}]
    expected = np.add(MEANS, [[1], [2]]).tolist()

    assert ask(aged, PREDICT, {"instances": rows}) == (200, {"predictions": expected})


@mark.parametrize("shape", [[2], [2, 1]])
@mark.parametrize("binary", [True, False])
def test_tritonclient_sends_images(server, grpc_server, shape, binary):
    """Files are BYTES in tritonclient, over HTTP in binary or JSON, and over gRPC."""
    rows = np.array([RED, BLUE], np.object_).reshape(shape)
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}")
    tensor = tritonclient.http.InferInput("image", shape, "BYTES")
    if binary:
        tensor.set_data_from_numpy(rows, binary_data=True)
        answer = client.infer("fake", [tensor]).as_numpy("mean")
        assert answer.tolist() == MEANS
    over_grpc = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc_server.port}")
    tensor = tritonclient.grpc.InferInput("image", shape, "BYTES")
    tensor.set_data_from_numpy(rows)
    assert over_grpc.infer("fake", [tensor]).as_numpy("mean").tolist() == MEANS
    in_json = {"name": "image", "datatype": "BYTES", "shape": shape, "data": [b64(RED), b64(BLUE)]}
    assert ask(server, INFER, {"inputs": [in_json]})[1]["outputs"][0]["data"] == sum(MEANS, [])  # noqa: RUF017 (two)


def test_metadata_describes_images(server):
    """Metadata describe an image input as BYTES of any length."""
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}")

    [described] = client.get_model_metadata("fake")["inputs"]

    assert described == {"name": "image", "datatype": "BYTES", "shape": [-1]}


def test_no_rows_are_an_answer(server):
    """A tensor of no images has no rows, and is not read as pixels."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [0], "data": []}

    status, answer = ask(server, INFER, {"inputs": [tensor]})

    assert status == 200
    assert answer["outputs"][0]["shape"] == [0, 3]


NO_IMAGE = "expected an image as JPEG, PNG or WebP, got a text; send the bytes of the file"


@mark.parametrize(
    ("path", "body", "message"),
    [
        (PREDICT, {"instances": [b64(RED), b64(b"x")]}, f"instances[1]: input 'image': {NO_IMAGE}"),
        (
            PREDICT,
            {"instances": ["http://127.0.0.1/a.png"]},
            'instances[0]: input \'image\': expected an image as {"b64": "…"}, got a string',
        ),
        (
            PREDICT,
            {"instances": [{"image": {"b64": "?"}}]},
            "instances[0]: input 'image': expected base64, got other characters",
        ),
        (
            PREDICT,
            {"instances": [{"image": {"b64": 1}}]},
            'instances[0]: input \'image\': expected an image as {"b64": "…"}, got an object',
        ),
        (
            PREDICT,
            {"instances": [b64(RED), 5]},
            "instances[1]: expected an image like the others, got a number",
        ),
        (
            PREDICT,
            {"instances": [{"image": [[0.5]]}]},
            "instances[0]: input 'image': expected uint8, got 0.5",
        ),
        (
            COLUMNS,
            {"inputs": {"image": ["a"]}},
            'input \'image\'[0]: expected an image as {"b64": "…"}, got a string',
        ),
        (COLUMNS, {"inputs": [b64(b"x")]}, f"input 'image'[0]: {NO_IMAGE}"),
        (
            INFER,
            {
                "inputs": [
                    {"name": "image", "datatype": "FP32", "shape": [1, 4, 6, 3], "data": [0.5]}
                ]
            },
            "input 'image': expected datatype BYTES or UINT8, got 'FP32'",
        ),
        (
            INFER,
            {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": [b64(RED)]}]},
            "input 'image': expected 2 images as its shape says, got 1",
        ),
    ],
)
def test_what_is_no_image_names_its_row(server, path, body, message):
    """Each protocol's error names the value that is no image, and what was expected."""
    assert ask(server, path, body) == (400, {"error": message, "code": "invalid_argument"})


@mark.parametrize(
    ("body", "status", "message"),
    [
        param(form(("x", RED)), 400, "body: expected parts 'image', got 'x'", id="name"),
        param(form(), 400, "body: expected a part for each row, got none", id="none"),
        param(form(("image", RED))[:-8], 400, "body: expected a whole form, got another one", id="cut"),
        param(b"--", 400, "body: expected a whole form, got another one", id="empty"),
        param(form(("image", RED), ("image", b"x")), 400, f"body: input 'image'[1]: {NO_IMAGE}", id="bad"),
        param(
            form(*[("image", b"")] * 1025), 413, "body: expected at most 1024 parts, got more", id="parts"
        ),
    ],
)  # fmt: skip
def test_a_bad_form_is_refused(server, body, status, message):
    """An incomplete form is refused by what is missing, and a flood of parts is not kept in memory."""
    answer = ask_form(server, body)

    assert (answer[0], answer[1]["error"]) == (status, message)


def test_other_types_are_refused(server, aged):
    """A body of another type is 415, with those that the model takes."""
    listed = "application/json, image/jpeg, image/png, image/webp or multipart/form-data"
    got = ask(server, PREDICT, RED, content_type="image/gif")
    assert (got[0], got[1]["error"]) == (415, f"content-type: expected {listed}, got 'image/gif'")
    beside = ask(aged, PREDICT, RED, content_type="image/png")
    assert (beside[0], beside[1]["error"]) == (
        415,
        "content-type: expected application/json, got 'image/png'",
    )
    infer = ask(server, INFER, RED, content_type="image/png")
    assert infer[0] == 415
    no_boundary = ask(server, PREDICT, b"--", content_type="multipart/form-data")
    assert no_boundary[1]["error"] == "content-type: expected a boundary with the form, got none"
