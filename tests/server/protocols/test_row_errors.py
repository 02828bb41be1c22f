"""Rows that fail by themselves, where a request of Vertex AI's protocol requests that."""

import contextlib

import numpy as np
from pytest import fixture, mark, param

from tests.server.fakes import ECHO, FakeModel, Running, signature
from tests.server.flask_client import client_for, refused
from tests.server.text_model import WITH_AGE, TextModel
from tests.tokenizer_files import ids

CAT, SAT = "cat", "the cat sat on a mat"
TOO_LONG = "expected at most 8 tokens, got 10"


def ask(client, instances, **parameters):
    """Send instances with `row_errors`; return the predictions."""
    body = {"instances": instances, "parameters": {"row_errors": True, **parameters}}
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200, answer.get_json()
    return answer.get_json()["predictions"]


def error(message, code="invalid_argument"):
    """Return the entry of a row that failed."""
    return {"error": {"code": code, "message": message}}


@fixture
def texts(running):
    """A client of a model that sums the ids of texts."""
    return client_for(running, TextModel())


@fixture
def tensors(running):
    """A client of a model that sums two numbers."""
    return client_for(running, FakeModel())


def test_bad_texts_are_errors_at_their_places(texts, running):
    """Of four texts the two that fit are answered, bit for bit as alone; the count is in the metrics."""
    alone = texts.post("/predict", json={"instances": [SAT, CAT]}).get_json()["predictions"]

    found = ask(texts, [SAT, "cat " * 8, CAT, "z" * 61])

    assert alone == [sum(ids(SAT)), sum(ids(CAT))]
    assert found == [
        alone[0],
        error(f"input 'text': {TOO_LONG}"),
        alone[1],
        error("input 'text': expected at most 60 bytes, got 61"),
    ]
    assert running.service.metrics.row_errors == 2


@mark.parametrize(
    ("bad", "message"),
    [
        param(None, "expected a text like the others, got null", id="null"),
        param(7, "expected a text like the others, got a number", id="number"),
        param({"txt": CAT}, "expected a text like the others, got an object", id="other-name"),
        param({"b64": "_"}, "input 'text': expected base64, got other characters", id="no-base64"),
        param([[CAT]], "expected a text like the others, got an array", id="nested"),
    ],
)
def test_instances_that_are_no_text_are_errors(texts, bad, message):
    """A row that cannot be read gets its own error, at any position."""
    for place in range(3):
        instances = [CAT, SAT]
        instances.insert(place, bad)
        found = ask(texts, instances)
        got = found.pop(place)
        assert found == [sum(ids(CAT)), sum(ids(SAT))]
        assert got == error(message)


def test_instances_have_the_form_of_the_first_that_fits(tensors):
    """Instances by name among others without are errors, since all are read together."""
    message = "expected the form of the first instance that fits, got an object"

    assert ask(tensors, [None, [1, 2], {"x": [3, 4]}, [5, 6]]) == [
        error("input 'x': expected float32, got null"),
        3.0,
        error(message),
        11.0,
    ]


def test_parsing_and_preparing_fail_in_one_request(texts):
    """Rows that cannot be read and rows that cannot be prepared keep their places."""
    rows = [{"text": 1}, {"text": CAT}, {"text": "cat " * 8}, {"text": None}, {"text": SAT}]

    assert ask(texts, rows) == [
        error("input 'text': expected a text, got a number"),
        sum(ids(CAT)),
        error(f"input 'text': {TOO_LONG}"),
        error("input 'text': expected a text, got null"),
        sum(ids(SAT)),
    ]


def test_tensors_beside_texts_go_with_their_rows(running):
    """A number beside a text that fails is left out with it."""
    client = client_for(running, TextModel(signature=WITH_AGE))
    rows = [[CAT, 1], ["cat " * 8, 5], [SAT, "x"], [SAT, 2]]

    assert ask(client, rows) == [
        sum(ids(CAT)) + 3,
        error(f"input 'text': {TOO_LONG}"),
        error("input 'age': expected int32, got a string"),
        sum(ids(SAT)) + 6,
    ]


def test_bad_tensors_are_errors_at_their_places(tensors, running):
    """Rows of tensors fail by themselves as well."""
    found = ask(tensors, [[1, 2], [1, 2, 3], [3, 4], [1, None], [1, 1e39]])

    assert found == [
        3.0,
        error("input 'x': expected float32[2], got [3]"),
        7.0,
        error("input 'x': expected float32, got null"),
        error("input 'x': expected float32, got 1e+39"),
    ]
    assert running.service.metrics.row_errors == 3


def test_rows_of_several_lengths_keep_their_places(running):
    """Rows that run apart and rows that fail come back in their order."""
    client = client_for(running, FakeModel(signature=ECHO))

    found = ask(client, [[1, 2, 3], [1] * 9, [4], [5, 6, 7, 8, 9]])

    assert [row.get("echo") for row in found] == [[1, 2, 3], None, [4], [5, 6, 7, 8, 9]]
    assert found[1] == error("axis 'seq': expected at most 8, got 9")


def test_all_texts_may_fail(texts):
    """A request in which no text is valid gets their errors, and runs nothing."""
    assert ask(texts, ["z" * 61]) == [error("input 'text': expected at most 60 bytes, got 61")]
    assert ask(texts, []) == []


def test_all_tensors_may_fail(tensors):
    """So is one of bad tensors."""
    assert ask(tensors, [["x"], None]) == [
        error("input 'x': expected float32, got a string"),
        error("input 'x': expected float32, got null"),
    ]


def test_rows_that_json_cannot_write_fail_by_themselves():
    """Where the policy for NaN is an error, it is the error of its row."""
    with contextlib.closing(Running(nonfinite="error")) as running:
        model = FakeModel(function=lambda x: (np.where(x.min(axis=1) < 0, np.nan, x.sum(axis=1)),))
        client = client_for(running, model)

        found = ask(client, [[1, 1], [-1, 1], [1, 1]])

    message = "the answer holds NaN or infinity, which JSON has no way to write"
    assert found == [2.0, error(message, "non_finite_output"), 2.0]


def test_without_the_parameter_a_row_fails_its_request(texts):
    """Errors of rows are returned only on request: other clients would not notice them."""
    body = {"instances": [CAT, "cat " * 8]}

    for parameters in ({}, {"row_errors": False}):
        answer = texts.post("/predict", json={**body, "parameters": parameters})
        assert refused(answer, 400, "invalid_argument") == f"instances[1]: input 'text': {TOO_LONG}"
    answer = texts.post("/predict", json={**body, "parameters": {"row_errors": "yes"}})
    message = "parameters: expected row_errors true or false, got 'yes'"
    assert refused(answer, 400, "invalid_argument") == message


def test_what_is_wrong_with_a_request_is_its_own_error(texts):
    """A body that is no request, or too many rows, is refused whole."""
    body = {"instances": [CAT] * 1025, "parameters": {"row_errors": True}}
    answer = texts.post("/predict", json=body)

    assert refused(answer, 413, "too_large") == "instances: expected at most 1024, got 1025"


SCALARS = signature(["a:float32[_]", "k:int8[_]"], ["y:float32[_]"])


@fixture
def columns(running):
    """A client of a model of two numbers."""
    return client_for(running, FakeModel(signature=SCALARS, function=lambda a, k: (a * k,)))


def test_columns_of_a_table_are_inputs_in_their_order(columns):
    """An array of all inputs, as batch prediction makes it of a CSV's row or a table's."""
    for instances in ([[1.5, 2.0], [2.5, 4.0]], [[1.5, 2], [2.5, 4]]):
        assert columns.post("/predict", json={"instances": instances}).get_json() == {
            "predictions": [3.0, 10.0]
        }
    assert ask(columns, [[1.5, 2.0], [1.5], [2.5, 2.5]]) == [
        3.0,
        error("expected 'a', 'k', in an object or in an array of 2, got 1 values"),
        error("input 'k': expected int8, got 2.5"),
    ]


def test_a_column_alone_is_a_scalar(running):
    """A row of one column is the value of a model's only number."""
    one = signature(["a:float32[_]"], ["y:float32[_]"])
    client = client_for(running, FakeModel(signature=one, function=lambda a: (2 * a,)))

    for instances in ([1.5, 2.5], [[1.5], [2.5]], [[1.5], 2.5]):
        answer = client.post("/predict", json={"instances": instances})
        assert answer.get_json() == {"predictions": [3.0, 5.0]}


@mark.parametrize(
    ("instances", "got"),
    [([[1, 2], [1]], "[1]: @1 values"), ([[1, 2], 3], "[1]: @a number"), ([[]], "[0]: @0 values")],
)
def test_columns_that_are_missing_are_refused(columns, instances, got):
    """An array has as many values as there are inputs, and all rows are arrays."""
    answer = columns.post("/predict", json={"instances": instances})

    expected = "expected 'a', 'k', in an object or in an array of 2, got "
    message = f"instances{got.replace('@', expected)}"
    assert refused(answer, 400, "invalid_argument") == message
