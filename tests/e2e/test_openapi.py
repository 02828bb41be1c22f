"""The HTTP routes against the OpenAPI file: every documented route is served, and every served route is documented."""

import contextlib

import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from pytest import fixture, mark
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from server.config import ServerConfig
from server.http.flask_app import create_app, make_wait
from server.http.routes import make_routes
from server.status import _TABLE, INTERNAL
from tests.server.fakes import FakeModel, Running
from tests.server.text_model import EmbeddingModel
from tests.serving import ROOT

pytestmark = mark.property

FILE = ROOT / "docs" / "openapi.yaml"
CONFIG = ServerConfig(bundle="unused")
GOOD = {"instances": [[1, 2]]}
CHECKS = (
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
)
# Hypothesis tries as many of each operation; enough to reach every branch of a dialect.
EXAMPLES = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def described():
    """Read the file."""
    return yaml.safe_load(FILE.read_text())


def narrowed():
    """Read the file, made to say what this model takes, so that good requests are tried as well."""
    raw = described()
    components = raw["components"]
    components["parameters"]["Model"]["schema"]["enum"] = ["fake"]
    components["parameters"]["Version"]["schema"]["enum"] = ["1"]
    number = {"type": "number", "minimum": -1000, "maximum": 1000}
    row = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    values = components["schemas"]["Values"]
    components["schemas"]["Values"] = {"anyOf": [row, {"type": "array", "items": row}, values]}
    components["schemas"]["Instance"]["anyOf"].insert(0, row)
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "additionalProperties": False,
        "properties": {
            "name": {"const": "x"},
            "shape": {"const": [1, 2]},
            "datatype": {"const": "FP32"},
            "data": row,
        },
    }
    one = {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1}
    request = components["schemas"]["InferRequest"]["properties"]
    request["inputs"] = {"anyOf": [one, one, request["inputs"]]}
    components["schemas"]["InferOutput"]["properties"]["name"] = {"const": "y"}
    return raw


@fixture(scope="module")
def application():
    """The application over a model that sums rows."""
    with contextlib.closing(Running()) as running:
        running.open(FakeModel())
        routes = make_routes(running.service, CONFIG)
        yield create_app(running.service, routes, CONFIG.bodies, make_wait(running.loop))


@fixture(scope="module")
def embedding_application():
    """The application over a model that embeds texts."""
    with contextlib.closing(Running()) as running:
        running.open(EmbeddingModel())
        routes = make_routes(running.service, CONFIG)
        yield create_app(running.service, routes, CONFIG.bodies, make_wait(running.loop))


def test_the_file_has_every_route_and_no_other():
    """Its paths and methods are those of the routes."""
    with contextlib.closing(Running()) as running:
        rules = {(r.method, r.rule) for r in make_routes(running.service, CONFIG)}
    renamed = {
        (method, rule.replace("<path:", "<").replace("<", "{").replace(">", "}"))
        for method, rule in rules
    }
    methods = ("get", "post", "put", "delete", "patch")

    described_here = {
        (method.upper(), path)
        for path, item in described()["paths"].items()
        for method in item
        if method in methods
    }

    assert described_here == renamed


def test_the_file_has_every_word_that_errors_have():
    """Every error code that a client may get is in the file's list."""
    codes = {status.error_code for status in (*_TABLE.values(), INTERNAL)}

    assert codes <= set(described()["components"]["schemas"]["Error"]["properties"]["code"]["enum"])


READS = [path for path, item in described()["paths"].items() if "get" in item]
# They are for models that embed texts.
EMBEDDINGS = ["/v1/embeddings", "/embed"]
INFERENCES = [
    path
    for path, item in described()["paths"].items()
    if "requestBody" in item.get("post", {}) and path not in EMBEDDINGS
]


def answered(application, method, path, mode):
    """Send what the file describes, or what it does not; check the answers, return their statuses."""
    schema = schemathesis.openapi.from_dict(narrowed())
    schema.app = application
    statuses = set()

    @EXAMPLES
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def ask(case):
        answer = case.call()
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    ask()
    return statuses


@mark.parametrize("path", READS)
def test_what_is_read_is_as_the_file_says(application, path):
    """Every answer to GET has a status, a type and a form that the file has."""
    statuses = answered(application, "GET", path, GenerationMode.POSITIVE)

    assert statuses in ({200}, {501})


@mark.parametrize("path", INFERENCES)
def test_inferences_are_answered_as_the_file_says(application, path):
    """Requests that the file describes get answers that it describes, good and bad; never a 500."""
    statuses = answered(application, "POST", path, GenerationMode.POSITIVE)

    assert statuses
    assert statuses <= {200, 400, 413, 415, 504}  # 413 where a header speaks of more JSON


@mark.parametrize("path", INFERENCES)
def test_what_the_file_does_not_describe_is_answered_as_it_says(application, path):
    """Requests that break the file's rules get its answers too, never a 500; then a good one does."""
    statuses = answered(application, "POST", path, GenerationMode.NEGATIVE)

    assert {400} <= statuses <= {200, 400, 404, 413, 415, 501, 504}
    assert application.test_client().post("/predict", json=GOOD).get_json() == {"predictions": [3.0]}  # fmt: skip


@mark.parametrize("path", EMBEDDINGS)
def test_embeddings_are_answered_as_the_file_says(embedding_application, path):
    """Texts that the file describes are embedded or refused, and what it does not is refused."""
    good = answered(embedding_application, "POST", path, GenerationMode.POSITIVE)
    bad = answered(embedding_application, "POST", path, GenerationMode.NEGATIVE)

    assert {200} <= good <= {200, 400, 413, 415, 504}
    assert {400} <= bad <= {200, 400, 404, 413, 415, 501, 504}
