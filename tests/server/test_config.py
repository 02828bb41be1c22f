"""Flags, environment variables and defaults."""

import errno

from pytest import mark, param, raises

from server import __main__ as program
from server.config import AUTO, ConfigError
from server.options import options, parse


def test_flag_wins_over_environment_and_environment_over_default():
    """A flag overrides an environment variable, which overrides the default."""
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


@mark.parametrize("kind", ["predict", "health"])
def test_a_route_that_vertex_does_not_name_is_missed(kind):
    """On Vertex AI a route that no variable names is refused; a flag or variable of ours sets it."""
    routes = {"AIP_PREDICT_ROUTE": "/ask", "AIP_HEALTH_ROUTE": "/alive", "AIP_MODE": "PREDICTION"}
    name = f"AIP_{kind.upper()}_ROUTE"
    routes[name] = ""

    with raises(ConfigError) as caught:
        parse(["--bundle", "b"], routes)

    assert str(caught.value) == (
        f"{name}: expected a path, as AIP_MODE is PREDICTION, got none; pass --{kind}-route"
    )
    assert parse(["--bundle", "b", f"--{kind}-route", "/x"], routes)
    assert parse(["--bundle", "b"], {**routes, f"HLOSERVE_{kind.upper()}_ROUTE": "/x"})
    assert parse(["--bundle", "b"], {**routes, "AIP_MODE": ""})


def test_an_empty_variable_counts_as_absent():
    """Vertex AI sets AIP_STORAGE_URI to nothing for a model without artifacts."""
    config = parse(["--bundle", "/baked/in"], {"AIP_STORAGE_URI": "", "AIP_HTTP_PORT": ""})

    assert config.bundle == "/baked/in"
    assert config.port == 8080


@mark.parametrize("uri", ["/mnt/models", "file:///mnt/models", "gs://bucket/folder"])
def test_a_bundle_may_be_on_disk_or_in_a_bucket(uri):
    """Local paths, KServe's mount among them, file:// and gs:// are taken."""
    assert parse([], {"AIP_STORAGE_URI": uri}).bundle == uri


def test_an_image_may_have_its_bundle_baked_in(tmp_path, monkeypatch):
    """Where nothing is named, a bundle at the place for baked-in ones is served, if one is there."""
    monkeypatch.setattr("server.options.BAKED_IN", str(tmp_path))
    with raises(ConfigError, match="got none"):
        parse([], {"AIP_STORAGE_URI": ""})
    (tmp_path / "manifest.json").touch()

    assert parse([], {"AIP_STORAGE_URI": ""}).bundle == str(tmp_path)
    assert parse(["--bundle", "b"], {}).bundle == "b"


def test_a_baked_in_bundle_is_the_one_of_the_image(tmp_path, monkeypatch):
    """An image's baked-in bundle and digest are used, unless another bundle or digest is named."""
    monkeypatch.setattr("server.options.BAKED_IN", str(tmp_path))
    monkeypatch.setattr("server.options.DIGEST_FILE", tmp_path / "bundle.sha256")
    (tmp_path / "manifest.json").touch()
    assert parse([], {}).require_digest == ""

    (tmp_path / "bundle.sha256").write_text(f"{'a' * 64}  /bundle/manifest.json\n")
    other = f"sha256:{'b' * 64}"
    assert parse([], {}).require_digest == f"sha256:{'a' * 64}"
    assert parse([], {"HLOSERVE_REQUIRE_DIGEST": other}).require_digest == other
    assert parse(["--bundle", "/mnt/models"], {}).require_digest == ""


@mark.parametrize(
    ("argv", "environ", "message"),
    [
        param([], {}, "bundle: expected a directory, got none; pass --bundle DIR", id="no-bundle"),
        param(["--bundel", "b"], {}, "--bundel: no such option; did you mean --bundle?", id="typo"),
        param(["b"], {}, "'b': expected options alone; pass --bundle DIR", id="no-option"),
        param(["--bundle"], {}, "argument --bundle: expected one argument", id="no-value"),
        param(
            ["--bundle", "b", "--port", "8001"],
            {},
            "port and grpc_port: expected two ports, got 8001 twice; pass another --grpc-port, "
            "or -1 for none",
            id="same-port",
        ),
        param(
            [],
            {"AIP_STORAGE_URI": "s3://bucket/model"},
            "bundle: expected a directory, gs:// or file://, got 's3://bucket/model'",
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
            ["--bundle", "b", "--grpc-max-connection-age-s", "-1"],
            {},
            "grpc_max_connection_age_s: expected 0 to 2000000, got -1.0",
            id="grpc-age-range",
        ),
        param(
            ["--bundle", "b", "--predict-route", "predict"],
            {},
            "predict_route: expected a path that begins with '/' and has none of '<>?# ', got 'predict'",
            id="route",
        ),
        param(
            ["--bundle", "b", "--predict-route", "/health"],
            {},
            "predict_route and health_route: expected two paths, got '/health' twice",
            id="same-route",
        ),
        param(
            ["--bundle", "b", "--predict-route", "/v2/../predict"],
            {},
            "predict_route: expected a path without '//', '/./' and '/../', got '/v2/../predict'",
            id="route-with-dots",
        ),
        param(
            ["--bundle", "b", "--executables", "/e"],
            {},
            "executables, executables_digest: expected both, or neither, got one: compiled programs are "
            "code, and are loaded only where their digest is given",
            id="executables-alone",
        ),
        param(
            ["--bundle", "b", "--executables", "/e", "--executables-digest", "abc"],
            {},
            "executables_digest: expected sha256: and the 64 hex digits that python -m runtime compile "
            "prints, got 'abc'",
            id="executables-digest",
        ),
        *(
            param(
                ["--bundle", "b", "--cors-origin", origin],
                {},
                "cors_origin: expected origins as browsers write them, such as "
                f"https://app.example, or * alone, got {(origin.rpartition(',')[2])!r}",
                id=f"origin-{origin}",
            )
            for origin in (
                *("https://app.example/", "HTTPS://app.example", "https://App.example", "null"),
                *("app.example", "https://app.example:443", "http://a:80", "https://*.example"),
                *("https://[::1]:443", "http://[::1]:80", "https://app.example:0444"),
                *("https://app.example,*", "https://u@app.example", "https://app.example:port"),
            )
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
    """An invalid value is an error that names the flag or variable."""
    with raises(ConfigError) as caught:
        parse(argv, environ)

    assert str(caught.value) == message


def test_help_is_grouped_and_shows_each_variable_and_default(capsys, monkeypatch):
    """`--help` has every option in its group, with its unit, default, variables and meaning."""
    monkeypatch.setenv("COLUMNS", "1000")
    with raises(SystemExit) as ended:
        parse(["--help"], {})

    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "Serve a bundle over HTTP and gRPC" in text
    groups = text.split("\n\n")
    for option in options():
        (group,) = [part for part in groups if part.startswith(f"{option.group}:\n")]
        lines = [" ".join(line.split()) for line in group.splitlines()]
        if option.switch:
            about = [f"{option.flag} {option.help}", f"[{option.variables[0]}=0]"]
        else:
            variables = ", ".join(option.variables)
            about = [f"{option.help} (default: {option.default})", f"[{variables}]"]
            flag = f"{option.flag} {option.unit}"
            # A long flag has a line of its own.
            if flag in lines:
                lines.remove(flag)
            else:
                about[0] = f"{flag} {about[0]}"
        assert "\n".join(about) in "\n".join(lines)


# For each option a value other than its default.
SOMETHING_ELSE = {
    "bundle": "gs://bucket/folder",
    "cache_dir": "/cache",
    "require_digest": "sha256:" + "0" * 64,
    "executables": "/e",
    "executables_digest": "sha256:" + "1" * 64,
    "device": "cuda:1",
    "devices": "0,1",
    "host": "::1",
    "port": 9000,
    "grpc_port": -1,
    "predict_route": "/p",
    "health_route": "/h",
    "cors_origin": "https://app.example,http://localhost:3000",
    "processes": 2,
    "max_queue_delay_ms": 1.5,
    "max_queue_rows": 1,
    "max_request_rows": 2,
    "request_timeout_ms": 0.5,
    "max_body_bytes": 3,
    "max_json_bytes": 4,
    "grpc_max_connection_age_s": 5.5,
    "grpc_front": "ngh2",
    "golden": "warn",
    "nonfinite": "string",
    "device_timeout_s": 6.5,
    "drain_delay_s": 7.0,
    "drain_timeout_s": 8.0,
    "log_format": "json",
    "trace_project": "mine",
    "metrics": False,
    "page": False,
    "reflection": False,
}


# Options that are valid only together.
BESIDE = {"executables": "executables_digest", "executables_digest": "executables"}


@mark.parametrize("option", list(options()), ids=lambda option: option.name)
def test_every_option_is_a_flag_and_a_variable(option):
    """Each option is set by its flag, and by each of its variables, the first before the second."""
    value = SOMETHING_ELSE[option.name]
    text = "0" if option.switch else str(value)
    flag = [option.flag] if option.switch else [option.flag, text]

    bundle = {} if option.name == "bundle" else {"HLOSERVE_BUNDLE": "b"}
    if option.name in BESIDE:
        other = BESIDE[option.name]
        bundle |= {f"HLOSERVE_{other.upper()}": SOMETHING_ELSE[other]}
    own, *others = option.variables

    found = [
        parse(flag, bundle),
        *(parse([], bundle | {name: text}) for name in option.variables),
        parse([], bundle | {own: text} | dict.fromkeys(others, "never read")),
    ]

    assert [getattr(config, option.name) for config in found] == [value] * len(found)
    assert own == f"HLOSERVE_{option.name.upper()}"


def test_the_number_of_processes_may_be_left_to_the_server():
    """`auto` stands for a number that is chosen at the start; other words and 0 are refused."""
    assert parse(["--bundle", "b", "--processes", "auto"], {}).processes == AUTO
    assert parse(["--bundle", "b"], {"HLOSERVE_PROCESSES": "auto"}).processes == AUTO
    for text in ("0", "-1", "two", "1.5", ""):
        with raises(ConfigError) as error:
            parse(["--bundle", "b", "--processes", text], {})
        assert str(error.value) == (
            f"--processes: expected a number of 1 or more, or auto, got {text!r}"
        )


def test_origins_are_named_one_after_the_other():
    """Origins come in flags of their own, or with commas between them; * stands for all."""
    two = ("https://app.example", "http://[::1]:3000")

    flags = parse(["--bundle", "b", "--cors-origin", two[0], "--cors-origin", two[1]], {})
    variable = parse(["--bundle", "b"], {"HLOSERVE_CORS_ORIGIN": ", ".join(two)})

    assert flags.origins == variable.origins == two
    for unusual in ("http://app.example:443", "https://app.example:80", "http://[::1]:8080"):
        assert parse(["--bundle", "b", "--cors-origin", unusual], {}).origins == (unusual,)
    assert parse(["--bundle", "b", "--cors-origin", "*"], {}).origins == ("*",)
    assert parse(["--bundle", "b"], {}).origins == ()


@mark.parametrize("devices", ["", "all", "0", "3,1", "10"])
def test_devices_are_all_or_indexes(devices):
    """Nothing means one device; `all` may stand beside a device, which is then all that there is."""
    assert parse(["--bundle", "b", "--devices", devices], {}).devices == devices
    assert (
        parse(["--bundle", "b", "--device", "cuda:1"], {"HLOSERVE_DEVICES": "all"}).devices == "all"
    )


@mark.parametrize(
    ("argv", "message"),
    [
        (["--devices", "cuda"], "devices: expected all, or indexes such as 0,1, got 'cuda'"),
        (["--devices", "0,,1"], "devices: expected all, or indexes such as 0,1, got '0,,1'"),
        (["--devices", "01"], "devices: expected all, or indexes such as 0,1, got '01'"),
        (["--devices", "-1"], "devices: expected all, or indexes such as 0,1, got '-1'"),
        (["--devices", "0,1,0"], "devices: expected each index once, got '0,1,0'"),
        (
            ["--device", "cuda:1", "--devices", "0,1"],
            "device and devices: expected one of them to have an index, got 'cuda:1' and '0,1'",
        ),
    ],
)
def test_devices_that_name_none_are_refused(argv, message):
    """An invalid list of indexes is refused by name before anything is loaded."""
    with raises(ConfigError) as caught:
        parse(["--bundle", "b", f"{argv[0]}={argv[1]}", *argv[2:]], {})

    assert str(caught.value) == message


def test_the_port_of_cloud_run_is_read():
    """Cloud Run, App Engine and Heroku set the port in PORT; any other setting of the port overrides it."""
    assert parse(["--bundle", "b"], {"PORT": "9000"}).port == 9000
    assert parse(["--bundle", "b"], {"PORT": "9000", "AIP_HTTP_PORT": "8081"}).port == 8081
    assert parse(["--bundle", "b"], {"PORT": "tcp://10.0.0.1:80"}).port == 8080
    with raises(ConfigError) as caught:
        parse(["--bundle", "b"], {"PORT": "http"})

    assert str(caught.value) == "PORT: expected a whole number, got 'http'"


def test_the_variables_of_a_kubernetes_service_are_not_ours():
    """Beside a service that is called hloserve Kubernetes sets HLOSERVE_PORT to an address."""
    environ = {"HLOSERVE_PORT": "tcp://10.0.0.1:80", "AIP_HTTP_PORT": "8081"}

    assert parse(["--bundle", "b"], environ).port == 8081


def test_the_configuration_shows_what_differs_from_the_defaults():
    """The start logs the options that were changed, by flag or variable, and no others."""
    config = parse(["--bundle", "b", "--port", "0", "--no-page"], {"HLOSERVE_PROCESSES": "2"})

    assert str(config) == "bundle='b', processes=2, port=0, page=False"
    assert str(parse(["--bundle", "b", "--port", "8080"], {})) == "bundle='b'"


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


def test_a_port_that_is_not_allowed_is_named(monkeypatch):
    """A port below 1024 that this user may not have is refused before anything is loaded."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(program, "listen", refuse)

    with raises(ConfigError) as caught:
        program._with_free_ports(parse(["--bundle", "b", "--port", "80"], {}))

    assert str(caught.value) == (
        "listen on 0.0.0.0 port 80: Permission denied; pass another --port"
    )


@mark.parametrize(
    ("words", "message"),
    [
        (
            ["--bundle", "gs:/bucket/iris"],
            (
                "bundle: expected a directory, gs:// or file://, got 'gs:/bucket/iris'; did you mean "
                "'gs://bucket/iris'?"
            ),
        ),
        (
            ["--bundle", "file:x"],
            "bundle: expected a directory, gs:// or file://, got 'file:x'",
        ),
        (
            ["--bundle", "b", "--cache-dir", "gs://bucket/cache"],
            "cache_dir: expected a path on this machine, got 'gs://bucket/cache'",
        ),
    ],
)
def test_a_url_is_not_taken_for_a_directory(words, message):
    """
    A URL whose slashes pathlib merged, and a cache in a bucket, are refused before the file system is accessed.
    """
    with raises(ConfigError) as caught:
        parse(words, {})

    assert str(caught.value) == message


DIGEST = "0123456789abcdef" * 4


@mark.parametrize(
    "data",
    [
        f"{DIGEST}  /bundle/manifest.json\n".encode(),
        f"\ufeff{DIGEST} */bundle/manifest.json\r\n".encode(),
        DIGEST.encode(),
    ],
)
def test_the_digest_of_an_image_is_read_as_tools_write_it(tmp_path, monkeypatch, data):
    """
    The file of sha256sum may have other line ends, a byte order mark or the digest alone.
    """
    (tmp_path / "manifest.json").touch()
    (tmp_path / "pin").write_bytes(data)
    monkeypatch.setattr("server.options.BAKED_IN", str(tmp_path))
    monkeypatch.setattr("server.options.DIGEST_FILE", tmp_path / "pin")

    assert parse([], {}).require_digest == f"sha256:{DIGEST}"


@mark.parametrize(
    ("data", "got"),
    [
        (b"", "that begins with 64 hex digits, got ''"),
        (b"sha256 of nothing", "that begins with 64 hex digits, got 'sha256 of nothing'"),
    ],
)
def test_a_digest_of_an_image_that_does_not_read_is_named(tmp_path, monkeypatch, data, got):
    """
    A damaged file is no digest, and is named with what it holds.
    """
    (tmp_path / "manifest.json").touch()
    (tmp_path / "pin").write_bytes(data)
    monkeypatch.setattr("server.options.BAKED_IN", str(tmp_path))
    monkeypatch.setattr("server.options.DIGEST_FILE", tmp_path / "pin")

    with raises(ConfigError) as caught:
        parse([], {})

    assert str(caught.value) == f"{tmp_path}/pin: expected a line of sha256sum {got}"
