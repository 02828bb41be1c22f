"""Embeddings for clients of OpenAI's API and of Text Embeddings Inference, by a change of URL."""

import base64
import http.client
import json

import numpy as np
import openai
from pytest import fixture, mark, param, raises

from tests.server.fakes import FakeModel
from tests.server.http_harness import HttpHarness, started_server
from tests.server.text_model import EmbeddingModel, TextModel
from tests.tokenizer_files import ids

pytestmark = mark.e2e

CAT, SAT = "cat", "the cat sat on a mat"


def vector(text):
    """Return the embedding of a text: the sum of its ids, and how many there are."""
    return [float(sum(ids(text))), float(len(ids(text)))]


def unit(text):
    """Return the embedding of a text, of length one."""
    return (np.float32(vector(text)) / np.linalg.norm(np.float32(vector(text)))).tolist()


@fixture(scope="module")
def server():
    """Embeddings as the model returns them."""
    yield from started_server(EmbeddingModel(normalized=False))


@fixture(scope="module")
def units():
    """Embeddings of length one."""
    yield from started_server(EmbeddingModel(normalized=True))


def client_of(server):
    """Return OpenAI's client, with only its URL changed."""
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0
    )


def ask(server, path, body):
    """Send a request to the WSGI application and to the server on its socket; return their common response."""
    data = json.dumps(body).encode()
    done = server.app.test_client().post(path, data=data)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", path, data)
    answer = connection.getresponse()
    found = [json.loads(answer.read()), done.get_json()]
    connection.close()
    for one in found:
        if isinstance(one, dict):
            one.pop("request_id", None)
    assert (answer.status, found[0]) == (done.status_code, found[1])
    return done.status_code, found[0]


@mark.parametrize("encoding", [openai.NOT_GIVEN, "float", "base64"], ids=["own", "float", "base64"])
def test_the_openai_client_embeds_texts(server, encoding):
    """The client's default works, and so do both encodings that it can request."""
    with client_of(server) as client:
        found = client.embeddings.create(
            model="text-embedding-3-small", input=[SAT, CAT], encoding_format=encoding
        )

    given = [
        np.frombuffer(base64.b64decode(one.embedding), "<f4").tolist()
        if isinstance(one.embedding, str)
        else one.embedding
        for one in found.data
    ]
    assert given == [vector(SAT), vector(CAT)]
    assert [one.index for one in found.data] == [0, 1]
    assert (found.object, found.model) == ("list", "fake")
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (11, 11)


def test_embeddings_are_scaled_by_choice(units):
    """A bundle says whether its embeddings are of length one, in every protocol."""
    with client_of(units) as client:
        found = client.embeddings.create(model="any", input=CAT)

    assert np.allclose(found.data[0].embedding, unit(CAT))
    predictions = ask(units, "/predict", {"instances": [CAT]})[1]["predictions"]
    assert np.allclose(predictions, [unit(CAT)])


def test_embeddings_are_predictions(server):
    """Vertex AI's predictions are the embeddings."""
    assert ask(server, "/predict", {"instances": [CAT, SAT]}) == (
        200,
        {"predictions": [vector(CAT), vector(SAT)]},
    )


def test_text_embeddings_inference_is_answered(server):
    """Text Embeddings Inference's clients send one text or several, and get embeddings of length one by default."""
    assert ask(server, "/embed", {"inputs": [CAT, SAT], "normalize": False}) == (
        200,
        [vector(CAT), vector(SAT)],
    )
    status, found = ask(server, "/embed", {"inputs": CAT, "truncate": False})
    assert status == 200
    assert np.allclose(found, [unit(CAT)])


def test_other_tokenizers_ids_are_refused(server):
    """Ids that a client made with another tokenizer are refused with a message to send text instead."""
    message = "input: expected texts, got integers; these are another tokenizer's ids; send text"

    for given in ([1, 2], [[1, 2], [3]]):
        with client_of(server) as client, raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="any", input=given)
        assert caught.value.body == message
    assert ask(server, "/embed", {"inputs": [1]})[1]["error"] == message.replace(
        "input", "inputs", 1
    )


@mark.parametrize(
    ("path", "body", "status", "message"),
    [
        param("/v1/embeddings", {"model": "m"}, 400, "input: expected a text or an array of texts, got none", id="none"),
        param("/v1/embeddings", {"input": []}, 400, "input: expected a text or an array of texts, got none", id="empty"),
        param("/v1/embeddings", {"input": 1}, 400, "input: expected a text or an array of texts, got a number", id="number"),
        param("/v1/embeddings", {"input": [None]}, 400, "input[0]: expected a text, got null", id="null"),
        param("/v1/embeddings", {"input": [CAT, "cat " * 7]}, 400, "input[1]: expected at most 8 tokens, got 9", id="tokens"),
        param("/v1/embeddings", {"input": [CAT] * 1025}, 413, "input: expected at most 1024 texts, got 1025", id="rows"),
        param("/v1/embeddings", {"input": CAT, "dimensions": 3}, 400, "dimensions: expected 2, the size of the model's embeddings, got 3", id="dimensions"),
        param("/v1/embeddings", {"input": CAT, "encoding_format": "int8"}, 400, "encoding_format: expected float or base64, got 'int8'", id="format"),
        param("/v1/embeddings", {"input": CAT, "inputs": 1}, 400, "body: expected input, model, encoding_format, dimensions, user, got 'inputs'", id="unknown"),
        param("/embed", {"inputs": CAT, "truncate": True}, 400, "truncate: expected false, since texts of more than 8 tokens are refused here, got true", id="truncate"),
        param("/embed", {"inputs": CAT, "normalize": 1}, 400, "normalize: expected true or false, got 1", id="normalize"),
        param("/embed", {"inputs": CAT, "prompt_name": "q"}, 400, "prompt_name: expected none, got 'q'", id="prompt"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(server, path, body, status, message):
    """Options that an API has and this model lacks are refused, never ignored."""
    found = ask(server, path, body)

    assert (found[0], found[1]["error"]) == (status, message)


def test_dimensions_may_be_said(server):
    """The model's own number of dimensions may be requested."""
    assert ask(server, "/v1/embeddings", {"input": CAT, "dimensions": 2})[0] == 200


@mark.parametrize("model", [FakeModel(), TextModel()], ids=["tensors", "texts"])
def test_models_that_embed_nothing_say_so(model):
    """For a model of tensors, or of texts without embeddings, these routes return an error."""
    server = HttpHarness(model)
    try:
        for path, body in (("/v1/embeddings", {"input": CAT}), ("/embed", {"inputs": CAT})):
            assert ask(server, path, body) == (
                404,
                {
                    "error": "embeddings: expected a model that embeds one text, got another one",
                    "code": "not_found",
                },
            )
    finally:
        server.close()
