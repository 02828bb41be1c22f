"""Both servers return the same bytes for the same request, route by route.

The frontend is on a real socket, as in `python -m server`; the application is Flask's, as under a WSGI server. Both share one service.
"""

import contextlib
import gzip
import http.client
import io
import json
import re
import urllib.parse

from pytest import fixture, mark

from server.config import ServerConfig
from server.http.routes import make_routes
from server.request_target import split_target
from tests.server.fakes import ECHO, SUM, FakeModel, Running
from tests.server.http_harness import HttpHarness

pytestmark = mark.e2e

LIMITS = {"max_json_bytes": 2000, "max_body_bytes": 4000}
COMPARED = ("content-type", "allow", "retry-after", "vary", "inference-header-content-length")
LENGTH = "inference-header-content-length"


class BothServers(HttpHarness):
    """A service with both its servers."""

    def at_front(self, method, path, body, headers, *, chunked=False):
        """Return the frontend's response to a request that is sent in one piece."""
        framing = ("transfer-encoding", "chunked") if chunked else ("content-length", len(body))
        fields = [*({"host": "t"} | headers).items(), framing]
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        if chunked:
            parts = [part for part in (body[:3], body[3:]) if part]
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))
        with self.connect() as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            answer = http.client.HTTPResponse(connection, method=method)
            answer.begin()
            return answer.status, answer.getheaders(), answer.read()

    def at_application(self, method, path, body, headers, *, chunked=False):
        """Return the application's response, without a socket."""
        # As WSGI servers pass a target on, and not as Flask's test client corrects it.
        before, query = split_target(path.encode())
        environ = {
            "PATH_INFO": urllib.parse.unquote_to_bytes(before).decode("latin-1"),
            "QUERY_STRING": query.decode(),
            "RAW_URI": path,
        }
        if chunked:
            environ |= {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True}
            headers, body = {**headers, "transfer-encoding": "chunked"}, None
        host = headers.get("host", "t")
        environ |= {"HTTP_HOST": host}
        answer = self.app.test_client().open(
            "/", method=method, data=body, headers=headers, environ_overrides=environ
        )
        return answer.status_code, list(answer.headers), answer.get_data()


MODELS = {"sum": SUM, "echo": ECHO}


@fixture(scope="module", params=[*MODELS, "loading", "stopping"])
def http_servers(request):
    """A ready server with one input or with several, one that loads, and one that stops."""
    name = request.param
    signature = MODELS.get(name, SUM)
    http_servers = BothServers(FakeModel(signature=signature), load=name != "loading", **LIMITS)
    if name == "stopping":
        http_servers.service.stop()
    yield http_servers
    http_servers.close()


def same(http_servers, *request, **how):
    """Assert that both servers respond the same, and return the status."""
    front = comparable(*http_servers.at_front(*request, **how))
    application = comparable(*http_servers.at_application(*request, **how))
    assert front == application
    return front["status"]


def comparable(status, headers, body):
    """Return the parts of a response that have to be equal."""
    found = {name.lower(): value for name, value in headers}
    found.pop("connection", None)
    if "allow" in found:
        found["allow"] = sorted(found["allow"].split(", "))
    with contextlib.suppress(ValueError):
        value = json.loads(body)
        if isinstance(value, dict) and "request_id" in value:
            assert re.fullmatch(r"[0-9a-f]{32}|mine", value["request_id"])
            body = json.dumps(value | {"request_id": "-"})
    return {
        "status": status,
        "evidence": sorted(name for name in found if name.startswith("x-hloserve")),
        "shared": {n: v for n, v in found.items() if n.startswith("access-control")},
        "headers": {name: found.get(name) for name in COMPARED},
        "length": found.get("content-length") if status == 200 else None,
        "body": body,
    }


def rules():
    """Return the method and rule of every route."""
    config = ServerConfig(bundle="unused")
    with contextlib.closing(Running()) as running:
        return [(r.method, r.rule, r.infers) for r in make_routes(running.service, config)]


ROUTES = rules()
COUNTING = ("/metrics", "/stats")
READ = [(m, r) for m, r, infers in ROUTES if not infers and not r.endswith(COUNTING)]
COUNTS = [rule for _, rule, _ in ROUTES if rule.endswith(COUNTING)]
# What embeds texts is asked both ways in protocols/test_embeddings.py.
EMBED = ["/v1/embeddings", "/embed"]
INFER = [rule for _, rule, infers in ROUTES if infers and rule not in EMBED]


def filled(rule, model="fake", version="1"):
    """Fill the parts of a rule in."""
    parts = {"<model>": model, "<version>": version, "<path:rest>": "index"}
    for part, value in parts.items():
        rule = rule.replace(part, value)
    return rule


def test_every_route_is_here():
    """Each route reads, counts or infers."""
    assert len(READ) + len(COUNTS) + len(INFER) + len(EMBED) == len(ROUTES)
    assert len(INFER) == 5


@mark.parametrize(("method", "rule"), READ)
def test_routes_that_read_answer_the_same(http_servers, method, rule):
    """Whatever the method, the name, the query and the body, the bytes are the same."""
    path = filled(rule)
    for verb in (method, "GET", "POST", "OPTIONS", "DELETE", "PATCH"):
        same(http_servers, verb, path, b"", {})
    same(http_servers, "HEAD", path, b"", {})
    same(http_servers, method, f"{path}/", b"", {})
    same(http_servers, method, f"{path}?x=%e2%82%ac&y", b"", {})
    same(http_servers, method, path, b"{not json", {"content-type": "text/plain"})
    same(http_servers, method, path, b"x" * 3000, {})
    same(http_servers, method, path, b"in pieces", {}, chunked=True)
    for name in ("other", "%e2%82%ac", "%ff", "%00", "%2e%2e", "..", "a%2fb", "m" * 500):
        same(http_servers, method, filled(rule, name), b"", {"x-request-id": "mine"})
        same(http_servers, method, filled(rule, "fake", name), b"", {})


@mark.parametrize("rule", COUNTS)
def test_routes_that_count_have_the_same_form(http_servers, rule):
    """Counters change between two scrapes; everything else of them is the same."""
    path = filled(rule)
    same(http_servers, "POST", path, b"", {})
    same(http_servers, "OPTIONS", path, b"", {})
    for _ in range(2):  # The first scrape's own count is in the second.
        answers = [
            ask("GET", path, b"", {})
            for ask in (http_servers.at_front, http_servers.at_application)
        ]
    forms = [(status, re.sub(rb"[0-9.e+-]+", b"0", body)) for status, _, body in answers]

    assert forms[0] == forms[1] or forms[0][0] == 503


def bodies(ids):
    """Return bodies with their headers: good ones of every protocol, and bad ones."""
    name, datatype = ("ids", "INT32") if ids else ("x", "FP32")
    raw = {"content-type": "application/vnd.vertex-ai-triton.binary+json; json-header-size=0"}
    tensor = {"name": name, "shape": [2, 2], "datatype": datatype, "data": [1, 2, 3, 4]}
    rows = [[1, 2], [3, 4]]
    binary = {**tensor, "parameters": {"binary_data_size": 16}}
    del binary["data"]
    head = json.dumps({"inputs": [binary]}).encode()
    good = [
        {"instances": rows},
        {"instances": [{name: row} for row in rows], "parameters": {"timeout_ms": 30_000}},
        {"instances": []},
        {"inputs": rows},
        {"inputs": {name: rows}},
        {"inputs": [tensor], "id": "seven", "parameters": {"timeout": 0}},
        {"inputs": [tensor], "parameters": {"binary_data_output": True}},
    ]
    bad = [
        {},
        [],
        {"instances": [[1, 2], [1, None]]},
        {"instances": [[1, 2], {}]},
        {"instances": [[1, 2]] * 200},
        {"inputs": [tensor, tensor]},
        {"inputs": [tensor | {"shape": [2**62, 2]}]},
        {"inputs": [tensor | {"shape": [0, 2**70], "data": []}]},
        {"inputs": [tensor], "outputs": [{"name": "z"}]},
        {"inputs": [tensor | {"parameters": {"shared_memory_region": "r"}}]},
        {"instances": rows, "parameters": {"timeout_ms": 0}},
    ]
    json_type = {"content-type": "application/json"}
    packed = json.dumps({"instances": rows}).encode()
    yield from ((json.dumps(value).encode(), json_type) for value in (*good, *bad))
    yield from (
        (packed, headers)
        for headers in (
            {"x-hloserve-evidence": "1"},
            {"x-request-timeout": "0"},
            {"x-request-timeout": "soon"},
            {"x-request-id": "mine", "x-request-timeout": "-1"},
            {"content-type": "text/plain"},
            {"content-type": "multipart/mixed; boundary=x"},
            {"content-type": "application/json; charset=utf-16"},
            {"content-encoding": "br"},
            {"content-encoding": "gzip"},
            {LENGTH: "-1"},
            {LENGTH: "99999999999"},
            raw,
        )
    )
    yield from (
        (b"", json_type),
        (b"{", json_type),
        (b'{"instances": [NaN]}', json_type),
        (b'{"instances": [], "instances": []}', json_type),
        (b'\xef\xbb\xbf{"instances": []}', json_type),
        (b"[" * 1500, json_type),
        (packed + b" " * (2000 - len(packed)), json_type),
        (packed + b" " * (2001 - len(packed)), json_type),
        (gzip.compress(packed), {"content-encoding": "gzip"}),
        (gzip.compress(packed + b" " * 10_000), {"content-encoding": "gzip"}),
        (head + b"\0" * 16, {LENGTH: str(len(head))}),
        (head + b"\0" * 15, {LENGTH: str(len(head))}),
        (bytes(16), raw),
        (bytes(4000), raw),
        (bytes(4001), raw),
    )


@mark.parametrize("rule", INFER)
def test_inferences_are_answered_the_same(http_servers, rule):
    """Good bodies and bad ones of every protocol get the same bytes, in one piece or in chunks."""
    path = filled(rule)
    model = http_servers.service.loaded and http_servers.service.model
    statuses = []
    for body, headers in bodies(ids=bool(model) and model.signature is ECHO):
        statuses.append(same(http_servers, "POST", path, body, headers))
        same(http_servers, "POST", path, body, headers, chunked=True)
    if model and http_servers.service.state.value == "ready":
        assert {200, 400, 413, 415} <= set(statuses)
    else:
        assert 503 in statuses
        assert 200 not in statuses


@mark.parametrize("rule", INFER)
def test_what_is_no_inference_is_refused_the_same(http_servers, rule):
    """Other methods, models, versions and spellings of a path are refused with the same message."""
    good = b'{"instances": [[1, 2]]}'
    path = filled(rule)
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"):
        same(http_servers, method, path, good if method in ("PUT", "PATCH") else b"", {})
    same(http_servers, "POST", f"{path}/", good, {})
    same(http_servers, "POST", f"{path}?x=1", good, {})
    for name in ("other", "%66ake", "%e2%82%ac", "%ff", "%2e%2e", "a%2fb", "m" * 500, "fake%20"):
        same(http_servers, "POST", filled(rule, name), good, {})
        same(http_servers, "POST", filled(rule, "fake", name), good, {})


@mark.parametrize("path", ["/nothing", "/predict/more", "/v2//health/live", "/%e2%82%ac", "/%ff", "/.."])  # fmt: skip
def test_unknown_paths_are_refused_the_same(http_servers, path):
    """Unknown paths are not found, with the same message."""
    for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
        assert same(http_servers, method, path, b"", {}) == 404


BAD_HOSTS = (
    *("a b", "a/b", "user@t", "user:word@t", "t:http", "t:80:80", "t:70000", "t:-1", "t?x", "t#x"),
    *(
        "http://t",
        "t,u",
        "[::1",
        "::1",
        "[::1]x",
        "[::g]",
        "[t]",
        "t%zz",
        "<t>",
        "t\\u",
        '"t"',
        "t\tu",
    ),
)
GOOD_HOSTS = (
    "",
    "t",
    "t:80",
    "t:",
    "t:0000000080",
    "T.example.",
    "10.0.0.1:8080",
    "[::1]",
    "[fe80::1]:80",
    "a_b",
    "%41",
)


@fixture(scope="module")
def sharing():
    """A ready server that allows pages of two origins."""
    http_servers = BothServers(cors_origin="https://app.example,http://localhost:3000")
    yield http_servers
    http_servers.close()


@mark.parametrize("host", BAD_HOSTS)
def test_what_is_no_host_is_refused_the_same(sharing, host):
    """RFC 9112 section 3.2: whatever the route, an invalid Host is 400."""
    for method, path in (("POST", "/predict"), ("GET", "/health"), ("GET", "/nothing")):
        assert same(sharing, method, path, b"", {"host": host}) == 400
    answer = sharing.at_front("GET", "/health", b"", {"host": host})[2]
    assert json.loads(answer)["error"] == f"host: expected a host, or host:port, got {host!r}"
    assert json.loads(answer)["code"] == "invalid_argument"


@mark.parametrize("host", GOOD_HOSTS)
def test_a_host_of_any_form_is_taken(sharing, host):
    """A name, an address, either with a port, or an empty Host."""
    assert same(sharing, "GET", "/health", b"", {"host": host}) == 200
    assert same(sharing, "POST", "/predict", b'{"instances": []}', {"host": host}) == 200


OTHER_SPELLINGS = (
    *(
        "//metrics",
        "/%2Fmetrics",
        "/%2fmetrics",
        "/./metrics",
        "/metrics/",
        "/metrics/.",
        "/METRICS",
    ),
    *(
        "/v2/../metrics",
        "/%2e/metrics",
        "/x/%2e%2e/metrics",
        "/%6detrics",
        "/%6Detrics",
        "/metric%73",
    ),
    *(
        "/metrics;x",
        "/metrics;",
        "/metrics%3Bx",
        "/metrics%00",
        "/metrics%20",
        "/%5Cmetrics",
        "/metrics//",
    ),
    *(
        "/metrics%2F",
        "/metrics%3Fx",
        "/metrics%23",
        "http://t//metrics",
        "http://t/%6detrics",
        "http://t/./metrics",
    ),
    *(
        "/v2//models/fake",
        "/v2%2Fmodels%2Ffake",
        "/v2/models%2Fstats",
        "/v2/repository/../../metrics",
    ),
)


@mark.parametrize("path", OTHER_SPELLINGS)
def test_a_path_has_one_spelling(sharing, path):
    """Other spellings of a path, which a proxy's rule might let through, are not found, and not redirected either."""
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        assert same(sharing, method, path, b"", {}) == 404
        assert same(sharing, method, f"{path}?x", b"", {}) == 404
    body = sharing.at_front("GET", path, b"", {})[2]
    error = json.loads(body)["error"]
    assert error.split("; ")[0] == f"GET {path.removeprefix('http://t')}: Not Found"


@mark.parametrize("path", ["/predict/", "/%70redict", "//predict", "/v1/models/fake%3Apredict", "/v2/models/%66ake/infer"])  # fmt: skip
def test_the_path_of_an_inference_has_one_spelling(sharing, path):
    """The routes that infer are found in one spelling as well."""
    assert same(sharing, "POST", path, b'{"instances": []}', {}) == 404


def test_a_route_that_needs_encoding_is_found_encoded():
    """A configured route of any letters is served as they come over the wire, and as nothing else."""
    http_servers = BothServers(predict_route="/prédire", health_route="/santé/")
    good = b'{"instances": [[1, 2]]}'
    try:
        assert same(http_servers, "POST", "/pr%C3%A9dire", good, {}) == 200
        assert same(http_servers, "GET", "/sant%C3%A9/", b"", {}) == 200
        assert same(http_servers, "POST", "/pr%c3%a9dire", good, {}) == 404
        assert same(http_servers, "GET", "/sant%C3%A9", b"", {}) == 404
    finally:
        http_servers.close()


def test_the_server_as_a_whole_is_asked_by_a_star(sharing):
    """OPTIONS * says which methods there are; no other method has that target."""
    assert same(sharing, "OPTIONS", "*", b"", {}) == 200
    assert sharing.at_front("OPTIONS", "*", b"", {})[2] == b""
    assert dict(sharing.at_front("OPTIONS", "*", b"", {})[1])["allow"] == "GET, HEAD, OPTIONS, POST"
    assert same(sharing, "GET", "*", b"", {}) == 400
    answer = json.loads(sharing.at_front("GET", "*", b"", {})[2])
    assert answer["error"] == "target: expected a path, or a URL of http, got '*'"


@mark.parametrize(
    ("target", "status"),
    [
        ("http://t/health", 200),
        ("HTTPS://u:8443/health?x", 200),
        ("http://[::1]/health", 200),
        ("http://t", 200),
        ("http://t?x", 200),
        ("ftp://t/health", 400),
        ("http:///health", 400),
        ("http://:80/health", 400),
        ("http://user@t/health", 400),
        ("http://t:port/health", 400),
    ],
)
def test_a_target_may_name_the_host(sharing, target, status):
    """RFC 9112 section 3.2.2: a URL of HTTP is its path, whatever Host says, and its host has to be one."""
    assert same(sharing, "GET", target, b"", {}) == status


PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type",
}


@mark.parametrize("origin", ["https://app.example", "http://localhost:3000"])
def test_pages_of_a_named_origin_may_ask_and_read(sharing, origin):
    """Responses of every kind allow the origin, and name the headers that may be read; preflight requests are answered."""
    good = b'{"instances": [[1, 2]]}'
    page = {"origin": origin}
    for method, path, body, status in (
        ("POST", "/predict", good, 200),
        ("POST", "/predict", b"{", 400),
        ("GET", "/health", b"", 200),
        ("GET", "/nothing", b"", 404),
        ("POST", "/predict", b"[" * (1 << 25), 413),
    ):
        assert same(sharing, method, path, body, page) == status
        found = dict(sharing.at_front(method, path, body, page)[1])
        assert found["vary"] == "Origin"
        assert found["access-control-allow-origin"] == origin
        assert "x-hloserve-bucket" in found["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in found
    assert same(sharing, "OPTIONS", "/predict", b"", page | PREFLIGHT) == 200
    found = dict(sharing.at_front("OPTIONS", "/predict", b"", page | PREFLIGHT)[1])
    assert found["access-control-allow-methods"] == "GET, POST"
    assert "content-type" in found["access-control-allow-headers"].split(", ")


@mark.parametrize("origin", ["https://app.example.evil", "http://app.example", "https://app.example:8443", "null", "*", ""])  # fmt: skip
def test_pages_of_other_origins_may_not_read(sharing, origin):
    """A response to any other origin has no CORS header but `Vary`."""
    for headers in ({"origin": origin}, {"origin": origin} | PREFLIGHT, {}):
        for method, path in (("OPTIONS", "/predict"), ("POST", "/predict"), ("GET", "/health")):
            same(sharing, method, path, b"", headers)
            found = dict(sharing.at_front(method, path, b"", headers)[1])
            assert found["vary"] == "Origin"
            assert not any(name.startswith("access-control") for name in found)


@mark.parametrize(("option", "allowed"), [("", None), ("*", "*")])
def test_all_origins_or_none_need_no_variant(option, allowed):
    """Without the option there are no CORS headers; with * every origin may read, and caches need not vary by it."""
    http_servers = BothServers(cors_origin=option)
    try:
        for headers in ({"origin": "https://any.example"}, {"origin": "null"} | PREFLIGHT):
            assert same(http_servers, "OPTIONS", "/predict", b"", headers) == 200
            found = dict(http_servers.at_front("OPTIONS", "/predict", b"", headers)[1])
            assert found.get("access-control-allow-origin") == allowed
            assert "vary" not in found
    finally:
        http_servers.close()
