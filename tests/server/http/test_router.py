"""URL routing: which route answers a method and a path."""

from pytest import fixture, mark, raises

from server.errors import MethodNotAllowed, NotFound
from server.http.router import Router, path_of
from server.http.routes import Route

RULES = (
    ("GET", "/health"),
    ("POST", "/predict"),
    ("GET", "/santé/"),
    ("GET", "/models/<model>"),
    ("GET", "/models/stats"),
    ("GET", "/both"),
    ("POST", "/both"),
    ("GET", "/tree/<path:rest>"),
)


@fixture(scope="module")
def router():
    """A router over routes of every kind."""
    return Router(Route(method, rule, "test") for method, rule in RULES)


@mark.parametrize(
    ("method", "target", "rule", "variables"),
    [
        ("GET", b"/health", "/health", {}),
        ("HEAD", b"/health?x=/predict", "/health", {}),
        ("POST", b"http://t/predict", "/predict", {}),
        ("GET", b"/sant%C3%A9/", "/santé/", {}),
        ("GET", b"/models/a%20b", "/models/<model>", {"model": "a b"}),
        ("GET", b"/models/stats", "/models/stats", {}),
        ("POST", b"/both", "/both", {}),
        ("GET", b"/tree/a/b", "/tree/<path:rest>", {"rest": "a/b"}),
    ],
)
def test_a_request_is_matched_by_method_and_path(router, method, target, rule, variables):
    """GET routes match HEAD, a fixed path precedes a variable, and variables are decoded."""
    for _ in range(2):  # the second match is cached
        route, found = router.match_target(method, target)

        assert (route.rule, dict(found)) == (rule, variables)


@mark.parametrize(
    "target", [b"/", b"/nothing", b"/health/", b"//health", b"/sant%C3%A9", b"/sant%c3%a9/", b"/tree/"]
)  # fmt: skip
def test_paths_without_a_route_are_not_found(router, target):
    """Other spellings of a path are not found, and never redirected."""
    for method in ("GET", "POST", "OPTIONS"):
        with raises(NotFound) as caught:
            router.match_target(method, target)

        assert str(caught.value).split("; ")[0] == f"{method} {target.decode()}: Not Found"
    with raises(NotFound):
        router.options(target, path_of(target))


@mark.parametrize(
    ("target", "advice"),
    [
        (b"/predict/", "; did you mean '/predict'?"),
        (b"//predict?x=1", "; did you mean '/predict'?"),
        (b"/%70redict", "; did you mean '/predict'?"),
        (b"/models//M/", "; did you mean '/models/M'?"),
        (b"/predicts", ""),
        (b"/" + b"h" * 300, ""),
    ],
)
def test_the_spelling_that_has_a_route_is_named(router, target, advice):
    """The error names the path without redundant slashes, which is the only mistake corrected without a guess."""
    with raises(NotFound) as caught:
        router.match_target("POST", target)

    path = target.decode().partition("?")[0][:100]
    assert str(caught.value) == f"POST {path}: Not Found{advice}"


def test_other_paths_are_described_where_there_is_a_description():
    """A 404 refers to the list of all paths, in a server that describes them."""
    with raises(NotFound) as caught:
        Router([Route("GET", "/openapi.json", "test")]).match_target("GET", b"/nothing")

    assert str(caught.value) == (
        "GET /nothing: Not Found; /openapi.json has the paths of this server"
    )


@mark.parametrize(
    ("method", "target", "allowed", "expected"),
    [
        ("GET", b"/predict", ["OPTIONS", "POST"], "POST"),
        ("POST", b"/health", ["GET", "HEAD", "OPTIONS"], "GET"),
        ("DELETE", b"/both", ["GET", "HEAD", "OPTIONS", "POST"], "GET or POST"),
    ],
)
def test_other_methods_of_a_path_are_not_allowed(router, method, target, allowed, expected):
    """The error lists the methods of all routes with this path; OPTIONS returns the same list."""
    with raises(MethodNotAllowed) as caught:
        router.match_target(method, target)
    options = router.options(target, path_of(target))

    assert str(caught.value) == f"{method} {target.decode()}: expected {expected}, got {method}"
    assert caught.value.allowed == allowed
    assert (options.status, options.body) == (200, b"")
    assert options.headers == (("allow", ", ".join(allowed)),)


def test_long_targets_are_not_cached(router):
    """What clients send in a path does not accumulate in memory."""
    cached = router._match_cached.cache_info().currsize

    router.match_target("GET", b"/models/" + b"m" * 10_000)

    assert router._match_cached.cache_info().currsize == cached
