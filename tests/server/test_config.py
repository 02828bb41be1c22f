"""Flags, environment variables and defaults."""

from pytest import mark, param, raises

from server.config import ConfigError, ServerConfig, parse


def test_flag_wins_over_environment_and_environment_over_default():
    """A flag wins over an environment variable, and that over the default."""
    environ = {"AIP_HTTP_PORT": "9001", "AIP_STORAGE_URI": "/from/env"}

    config = parse(["--bundle", "/from/flag"], environ)

    assert config.bundle == "/from/flag"
    assert config.port == 9001
    assert config.predict_route == "/predict"


def test_vertex_variables_are_enough():
    """The variables that Vertex AI sets configure the server without any flag."""
    environ = {
        "AIP_STORAGE_URI": "/model",
        "AIP_HTTP_PORT": "8081",
        "AIP_PREDICT_ROUTE": "/v1/endpoints/1/deployedModels/2:predict",
        "AIP_HEALTH_ROUTE": "/v1/endpoints/1/deployedModels/2",
        "AIP_MODE": "PREDICTION",
    }

    config = parse([], environ)

    assert config.port == 8081
    assert config.predict_route == "/v1/endpoints/1/deployedModels/2:predict"
    assert config.health_route == "/v1/endpoints/1/deployedModels/2"


def test_an_empty_variable_counts_as_absent():
    """Vertex AI sets AIP_STORAGE_URI to nothing for a model without artifacts."""
    config = parse(["--bundle", "/baked/in"], {"AIP_STORAGE_URI": "", "AIP_HTTP_PORT": ""})

    assert config.bundle == "/baked/in"
    assert config.port == 8080


@mark.parametrize(
    ("argv", "environ", "message"),
    [
        param([], {}, "bundle: expected a directory, got none; pass --bundle DIR", id="no-bundle"),
        param(["--bundel", "b"], {}, "--bundel: no such option; did you mean --bundle?", id="typo"),
        param(
            [],
            {"AIP_STORAGE_URI": "gs://bucket/model"},
            "bundle: expected a local directory, got 'gs://bucket/model'",
            id="uri",
        ),
        param(
            ["--bundle", "b"],
            {"AIP_HTTP_PORT": "http"},
            "AIP_HTTP_PORT: expected a whole number, got 'http'",
            id="bad-variable",
        ),
        param(
            ["--bundle", "b", "--port", "70000"],
            {},
            "port: expected 0 to 65535, got 70000",
            id="port-range",
        ),
        param(
            ["--bundle", "b"],
            {"HLOSERVE_GRPC_PORT": "-2"},
            "grpc_port: expected -1 to 65535, got -2",
            id="grpc-port-range",
        ),
        param(
            ["--bundle", "b", "--predict-route", "predict"],
            {},
            "predict_route: expected a path that begins with '/', got 'predict'",
            id="route",
        ),
        param(
            ["--bundle", "b", "--predict-route", "/health"],
            {},
            "predict_route and health_route: expected two paths, got '/health' twice",
            id="same-route",
        ),
        param(
            ["--bundle", "b", "--max-body-bytes", "0"],
            {},
            "max_body_bytes: expected at least 1, got 0",
            id="no-body",
        ),
    ],
)
def test_a_bad_value_names_its_source(argv, environ, message):
    """A value that does not read is an error that names the flag or variable."""
    with raises(ConfigError) as caught:
        parse(argv, environ)

    assert str(caught.value) == message


def test_help_shows_each_variable_and_default(capsys):
    """`--help` shows the environment variable and the default of every option."""
    with raises(SystemExit):
        parse(["--help"], {})

    text = " ".join(capsys.readouterr().out.split())
    assert "[AIP_HTTP_PORT; default: 8080]" in text
    for name, field in ServerConfig.__dataclass_fields__.items():
        prefix = "--no-" if field.default is True else "--"
        assert f"{prefix}{name.replace('_', '-')} " in text
    assert "[HLOSERVE_PAGE=0]" in text


@mark.parametrize(
    ("argv", "environ", "page"),
    [
        ([], {}, True),
        (["--no-page"], {}, False),
        ([], {"HLOSERVE_PAGE": "0"}, False),
        ([], {"HLOSERVE_PAGE": "1"}, True),
        (["--no-page"], {"HLOSERVE_PAGE": "1"}, False),
    ],
)
def test_what_is_on_is_switched_off(argv, environ, page):
    """An option that is on has a flag to switch it off, and a variable that is 0 or 1."""
    assert parse(["--bundle", "b", *argv], environ).page == page


def test_a_switch_that_is_neither_is_refused():
    """A variable that is neither 0 nor 1 is named."""
    with raises(ConfigError) as caught:
        parse(["--bundle", "b"], {"HLOSERVE_PAGE": "off"})

    assert str(caught.value) == "HLOSERVE_PAGE: expected 0 or 1, got 'off'"
