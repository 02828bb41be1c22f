"""URL routing for both HTTP front ends: from a method and a path to a route."""

import functools
import urllib.parse
from collections.abc import Iterable, Mapping

from werkzeug import exceptions
from werkzeug.routing import Map, Rule

from server.errors import MethodNotAllowed, NotFound
from server.http.routes import Route
from server.protocols.response import Response
from server.request_target import METHODS, WHOLE_SERVER, encode_path, is_canonical, split_target

# Matches of a longer target are not cached, so that no client fills memory with them.
_CACHED_TARGET_BYTES = 256
_CACHED_TARGETS = 1024
_DESCRIPTION = "/openapi.json"
# Methods that come with others.
_BESIDE = ("HEAD", "OPTIONS")

Match = tuple[Route, Mapping[str, str]]


class Router:
    """Matches requests to routes. Thread-safe.

    A path is matched in its canonical spelling only, and never redirected. Routes with the method
    GET also match HEAD.

    Args:
      routes: one for each method and rule.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        by_name = {f"{route.method} {route.rule}": route for route in routes}
        # OPTIONS is answered for every rule; werkzeug adds HEAD beside GET.
        rules = [
            Rule(route.rule, endpoint=name, methods=[route.method, "OPTIONS"])
            for name, route in by_name.items()
        ]
        self._routes = by_name
        # Where the paths of this server are described, if it has a page at all.
        self._listed = _DESCRIPTION if f"GET {_DESCRIPTION}" in by_name else None
        self._urls = Map(rules, merge_slashes=False).bind("localhost")
        self._match_cached = functools.lru_cache(_CACHED_TARGETS)(self._match_target)

    def match_target(self, method: str, target: bytes) -> Match:
        """Return the route for a request target as it was sent, and the variables of its path.

        Raises:
          NotFound: no route has this path.
          MethodNotAllowed: the routes that have this path have other methods.
        """
        cached = len(target) <= _CACHED_TARGET_BYTES
        return (self._match_cached if cached else self._match_target)(method, target)

    def match_path(self, method: str, target: bytes, path: str) -> Match:
        """Return the route for a decoded path, and the variables of the path.

        Args:
          method: as sent.
          target: as sent, or as the WSGI server reports it.
          path: the part of the target that is matched, percent-decoded.

        Raises:
          NotFound: no route has this path, or target and path are not in the canonical spelling.
          MethodNotAllowed: the routes that have this path have other methods.
        """
        if not is_canonical(split_target(target)[0]) or not is_canonical(encode_path(path)):
            raise self._not_found(method, target)
        try:
            name, variables = self._urls.match(path, method)
        except exceptions.MethodNotAllowed as error:
            allowed = sorted(error.valid_methods or ())
            expected = " or ".join(m for m in allowed if m not in _BESIDE)
            raise MethodNotAllowed(
                f"{_describe(method, target)}: expected {expected}, got {method}", allowed
            ) from None
        except exceptions.HTTPException:  # a redirect to a slash at the end is not found either
            raise self._not_found(method, target) from None
        return self._routes[name], variables

    def options(self, target: bytes, path: str) -> Response:
        """Return the response to OPTIONS: the methods of a path, or of the server as a whole.

        Args:
          target: as sent.
          path: the part of the target that is matched, percent-decoded.

        Raises:
          NotFound: no route has this path.
        """
        if target == WHOLE_SERVER:
            return Response(200, (("allow", METHODS),), b"")
        self.match_path("OPTIONS", target, path)
        allowed = ", ".join(sorted(self._urls.allowed_methods(path)))
        return Response(200, (("allow", allowed),), b"")

    def _not_found(self, method: str, target: bytes) -> NotFound:
        """Return the error about a path without a route, with the spelling that has one."""
        path = "/" + "/".join(filter(None, path_of(target).split("/")))
        if len(target) <= _CACHED_TARGET_BYTES and self._has(path):
            advice = f"; did you mean {path!r}?"
        else:
            advice = f"; {self._listed} has the paths of this server" if self._listed else ""
        return NotFound(f"{_describe(method, target)}: Not Found{advice}")

    def _has(self, path: str) -> bool:
        """Whether a route has a path, with whatever method."""
        return is_canonical(encode_path(path)) and bool(self._urls.allowed_methods(path))

    def _match_target(self, method: str, target: bytes) -> Match:
        return self.match_path(method, target, path_of(target))


def path_of(target: bytes) -> str:
    """Return the path of a request target, percent-decoded."""
    return urllib.parse.unquote_to_bytes(split_target(target)[0]).decode(errors="replace")


def _describe(method: str, target: bytes) -> str:
    path = split_target(target)[0].decode("latin-1")
    return f"{method} {path[:100]}"
