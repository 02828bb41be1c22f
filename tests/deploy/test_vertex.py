"""deploy.vertex: what it prints, and the requests that Google's SDK sends for it."""

import json
import re
import shlex
import subprocess
import sys
import urllib.parse

import google.auth
import requests
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from google.auth.transport.requests import AuthorizedSession
from pytest import fixture, mark

from deploy import vertex
from deploy.refusals import explained
from runtime.bundle import open_bundle
from runtime.storage.bundle_fetch import fetching
from runtime.storage.gcs import CloudStore
from tests.deploy.conftest import IMAGE
from tests.serving import ROOT

PLACE = "projects/p/locations/us-central1"
L4 = ("--accelerator-type", "NVIDIA_L4", "--machine-type", "g2-standard-4")


@fixture
def digest(classifier_bundle):
    """The name of the bundle's own folder."""
    return open_bundle(classifier_bundle).digest[:12]


class Vertex:
    """Vertex AI's side of the SDK's HTTP transport.

    Attributes:
      sent: method, path and body of each request that changes something.
      status: of every answer.
      refused: what the paths of requests end with that are refused.
    """

    def __init__(self):
        self.sent = []
        self.status = 200
        self.refused = "nothing"

    def request(self, method, url, data=None, **_):
        """Answer a request; every operation is done at once."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(url).path).removeprefix("/v1/")
        if method != "GET":
            self.sent.append((method, path, json.loads(data)))
        status = 403 if path.endswith(self.refused) else self.status
        return response(method, url, status, self._answer(method, path, status))

    def _answer(self, method, path, status):
        if status != 200:
            return {"error": {"code": status, "message": "not yours"}}
        if path == f"{PLACE}/models:upload":
            return done("UploadModelResponse", model=f"{PLACE}/models/11", modelVersionId="1")
        if method == "POST" and path == f"{PLACE}/endpoints":
            return done("Endpoint", name=f"{PLACE}/endpoints/22")
        if path.endswith(":deployModel"):
            return done("DeployModelResponse")
        if path.startswith(f"{PLACE}/models/11"):
            kinds = ["DEDICATED_RESOURCES"]
            return {"name": path, "versionId": "1", "supportedDeploymentResourcesTypes": kinds}
        return {"name": path, "displayName": "kept", "trafficSplit": {"7": 100}, **deployed(path)}


def response(method, url, status, value):
    """Return the stand-in for an HTTP session's response."""
    made = requests.Response()
    made.status_code, made.url = status, url
    made.headers["Content-Type"] = "application/json"
    made.request = requests.Request(method, url).prepare()
    made._content = json.dumps(value).encode()
    return made


def deployed(path):
    """Return the endpoint that exists beforehand; others have no deployed models."""
    return {"deployedModels": [{"id": "7"}]} if path.endswith("/33") else {}


def done(kind, **fields):
    """Return an operation that is done."""
    kind = f"type.googleapis.com/google.cloud.aiplatform.v1.{kind}"
    return {"name": f"{PLACE}/operations/1", "done": True, "response": {"@type": kind, **fields}}


@fixture
def cloud(monkeypatch):
    """Vertex AI, and a bucket in a storage emulator."""
    from gcp_storage_emulator.server import create_server

    from tests.serving import free_port

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="models")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(google.auth, "default", lambda *_, **__: (AnonymousCredentials(), "p"))
    fake, real, uploaded = Vertex(), AuthorizedSession.request, set()

    def request(session, method, url, data=None, **named):
        if "aiplatform.googleapis.com" in url:
            return fake.request(method, url, data, **named)
        if "/upload/" in url:
            # The emulator would write over what is there, whatever its options.
            name = re.search(rb'"name": *"([^"]+)"', data)[1]
            if name in uploaded and "ifGenerationMatch=0" in url:
                return response(method, url, 412, {})
            uploaded.add(name)
        return real(session, method, url, data, **named)

    monkeypatch.setattr(AuthorizedSession, "request", request)
    yield fake
    server.stop()


def test_a_bundle_is_deployed(cloud, argv, digest, capsys):
    """The bundle is uploaded to a folder of its own, and model, endpoint, deployment requested."""
    options = [*L4, "--grpc"]
    options += ["--max-replicas", "3", "--service-account", "s@p.iam.gserviceaccount.com"]

    assert vertex.main([*argv, *options]) == 0

    (_, upload, model), (_, create, endpoint), (_, deploy, deployment) = cloud.sent
    assert upload == f"{PLACE}/models:upload"
    whole = open_bundle(argv[1]).digest
    assert model["model"]["artifactUri"] == f"gs://models/a/{digest}"
    assert model["model"]["displayName"] == "classifier"
    assert model["model"]["containerSpec"] == {
        "imageUri": IMAGE,
        "predictRoute": "/predict",
        "healthRoute": "/health",
        "ports": [{"containerPort": 8080}],
        "grpcPorts": [{"containerPort": 8001}],
        "env": [
            {"name": "HLOSERVE_REQUIRE_DIGEST", "value": f"sha256:{whole}"},
            {"name": "HLOSERVE_LOG_FORMAT", "value": "json"},
            {"name": "HLOSERVE_DEVICE", "value": "cuda"},
        ],
        "deploymentTimeout": "1800s",
    }
    assert create == f"{PLACE}/endpoints"
    assert endpoint["displayName"] == "classifier"
    assert endpoint["dedicatedEndpointEnabled"] is True
    assert deploy == f"{PLACE}/endpoints/22:deployModel"
    assert deployment["trafficSplit"] == {"0": 100}
    made = deployment["deployedModel"]
    assert made["model"].startswith(f"{PLACE}/models/11")
    assert made["serviceAccount"] == "s@p.iam.gserviceaccount.com"
    resources = made["dedicatedResources"]
    assert (resources["minReplicaCount"], resources["maxReplicaCount"]) == (1, 3)
    assert resources["machineSpec"]["machineType"] == "g2-standard-4"
    assert resources["machineSpec"]["acceleratorCount"] == 1
    assert capsys.readouterr().out.endswith(f"deployed: {PLACE}/endpoints/22\n")


@mark.usefixtures("cloud")
def test_what_was_uploaded_is_what_a_server_fetches(argv, digest, capsys):
    """The upload is a bundle to the server; a second one sends no file again."""
    assert vertex.main(argv) == 0
    folder = vertex.folder_of("gs://models/a", open_bundle(argv[1]))
    with fetching(CloudStore(folder), None) as bundle:
        bundle.check()
    uploaded = re.findall(r"^uploaded (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert vertex.main(argv) == 0
    again = re.findall(r"^there already: (\S+)$", capsys.readouterr().out, re.MULTILINE)

    assert uploaded[-1] == f"gs://models/a/{digest}/manifest.json"
    assert len(uploaded) == 1 + len(bundle.manifest.files)
    assert again == uploaded


def test_a_canary_goes_to_an_endpoint_that_is_there(cloud, argv):
    """A new version of a model takes a share of an endpoint's traffic; the others keep theirs."""
    options = ["--endpoint", "33", "--traffic", "10", "--parent-model", "11", "--name", "next"]

    assert vertex.main([*argv, *options]) == 0
    (_, _, model), (_, deploy, deployment) = cloud.sent
    assert model["parentModel"] == f"{PLACE}/models/11"
    assert deploy == f"{PLACE}/endpoints/33:deployModel"
    assert deployment["trafficSplit"] == {"0": 10, "7": 90}


def test_the_server_gets_the_options_that_are_asked_for(cloud, argv, digest, capsys):
    """Variables of the server go with the model, and into gcloud's line whatever they hold."""
    asked = {"HLOSERVE_PROCESSES": "4", "HLOSERVE_LOG_FORMAT": "text", "TAGS": "a,b"}
    options = [f"--env={name}={value}" for name, value in asked.items()]
    assert vertex.main([*argv, *options]) == 0
    [body] = [body for _, path, body in cloud.sent if path.endswith("models:upload")]
    assert vertex.main([*argv, *options, "--dry-run"]) == 0
    [line] = [li for li in capsys.readouterr().out.splitlines() if "models upload" in li]

    printed = {one["name"]: one["value"] for one in body["model"]["containerSpec"]["env"]}
    assert {name: printed[name] for name in asked} == asked
    assert printed["HLOSERVE_REQUIRE_DIGEST"].startswith(f"sha256:{digest}")
    [flag] = [word for word in shlex.split(line) if word.startswith("--container-env-vars=")]
    assert flag.startswith("--container-env-vars=^|^HLOSERVE_REQUIRE_DIGEST=")
    assert flag.endswith("|HLOSERVE_LOG_FORMAT=text|HLOSERVE_PROCESSES=4|TAGS=a,b")


def test_probes_are_those_of_the_server(cloud, argv):
    """The startup probe asks for liveness, also while loading; the health probe asks for readiness."""
    assert vertex.main([*argv, "--probes", "--shared"]) == 0

    (_, _, model), (_, _, endpoint), _ = cloud.sent
    spec = model["model"]["containerSpec"]
    assert "/v2/health/live'" in spec["startupProbe"]["exec"]["command"][2]
    assert "/health'" in spec["healthProbe"]["exec"]["command"][2]
    assert spec["healthProbe"]["timeoutSeconds"] == 10
    assert not endpoint.get("dedicatedEndpointEnabled")


def test_a_refusal_is_one_line(cloud, argv, capsys):
    """A refusal by Vertex ends with its own message, the remedy and status 1."""
    cloud.status = 403

    assert vertex.main(argv) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 403 POST ")
    assert error.endswith(": not yours; docs/deploy-vertex.md lists the roles that this takes")


def test_what_was_made_before_a_failure_is_printed(cloud, argv, capsys):
    """When the deployment fails, model and endpoint exist already, and a retry may use them."""
    cloud.refused = ":deployModel"

    assert vertex.main(argv) == 1
    *_, error, note = capsys.readouterr().err.splitlines()
    assert error.endswith(": not yours; docs/deploy-vertex.md lists the roles that this takes")
    assert note == (
        "note: model and endpoint are there; to go on with them, --parent-model 11 --endpoint 22"
    )


def test_an_unknown_region_is_refused_before_anything_is_uploaded(cloud, argv, capsys):
    """The region is validated by the SDK first."""
    argv[-1] = "middle-earth1"

    assert vertex.main(argv) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == (
        "error: --region: expected one that Vertex AI is in, got 'middle-earth1'"
    )
    assert "uploaded" not in printed.out
    assert cloud.sent == []


@mark.parametrize(
    ("error", "line"),
    [
        (
            DefaultCredentialsError("Your default credentials were not found. To set up …"),
            "expected credentials, got none; run gcloud auth application-default login",
        ),
        (
            RefreshError("Reauthentication is needed.\nmore"),
            "Reauthentication is needed.; run gcloud auth application-default login",
        ),
        (
            exceptions.NotFound("POST https://…: The specified bucket does not exist."),
            (
                "404 POST https://…: The specified bucket does not exist.; make it with gcloud storage "
                "buckets create"
            ),
        ),
        (
            exceptions.ResourceExhausted("The following quotas are exceeded: CustomModel…"),
            (
                "429 The following quotas are exceeded: CustomModel…; ask for more of it, or take "
                "another --machine-type or --region"
            ),
        ),
        (
            exceptions.FailedPrecondition("Model server never became ready"),
            "400 Model server never became ready",
        ),
        (ConnectionError("[Errno 111] refused"), "[Errno 111] refused; is the network there?"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_errors_are_one_line_with_the_way_out(error, line):
    """Errors of credentials, buckets, quotas and networks are reported by name, with the remedy."""
    assert explained(error, "us-central1") == line


@mark.e2e
def test_a_dry_run_needs_no_sdk(argv, digest):
    """Calls and command lines are printed without any of Google's packages installed."""
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['google', 'google.cloud'])); "
        "runpy.run_module('deploy.vertex', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, *argv, "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (
        0,
        "note: batch prediction sends 64 instances, the largest bucket is 4\n",
    )
    shell = [shlex.split(line[2:])[:4] for line in done.stdout.splitlines() if line[:2] == "$ "]
    assert shell == [
        ["gcloud", "storage", "rsync", "--recursive"],
        ["gcloud", "storage", "cp", f"{argv[1]}/manifest.json"],
        ["gcloud", "ai", "models", "upload"],
        ["curl", "-X", "POST", "-H"],
        ["gcloud", "ai", "endpoints", "deploy-model"],
    ]
    calls = re.findall(r"^\w+ = ([\w.]+)\($", done.stdout, re.MULTILINE)
    assert calls == ["aiplatform.Model.upload", "aiplatform.Endpoint.create", "endpoint.deploy"]
    assert f"    artifact_uri='gs://models/a/{digest}',\n" in done.stdout
    assert "    model=model,\n" in done.stdout


@mark.e2e
def test_a_dry_run_may_be_cut_short(argv):
    """`… --dry-run | head -1` ends without a traceback."""
    command = shlex.join([sys.executable, "-m", "deploy.vertex", *argv, "--dry-run"])
    shell = ["bash", "-c", f"{command} | true"]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True)

    assert "Traceback" not in done.stderr


def test_the_calls_of_a_dry_run_are_the_ones_that_are_made(argv, capsys):
    """What is printed as Python is Python, with the arguments of the real calls."""
    assert vertex.main([*argv, "--dry-run", "--probes", "--grpc"]) == 0
    printed = capsys.readouterr().out
    python = "\n".join(line for line in printed.splitlines() if line[:2] not in ("$ ", "# "))
    made = []

    class Recorder:
        """Record every call."""

        def __getattr__(self, name):
            return lambda **arguments: made.append((name, arguments)) or self

    sdk = Recorder()
    sdk.Model = sdk.Endpoint = sdk
    exec(python, {"aiplatform": sdk})  # noqa: S102
    printed_calls, made = made, []
    options = vertex.parser().parse_args([*argv, "--probes", "--grpc"])
    bundle = open_bundle(options.bundle)
    results = {"aiplatform": sdk}
    vertex.perform(
        vertex.plan(options, bundle, vertex.folder_of(options.to, bundle)), known=results
    )

    assert printed_calls[:2] == made[:2]
    assert [name for name, _ in printed_calls] == ["upload", "create", "deploy"]
    assert results["endpoint"] is sdk


def test_gcloud_gets_the_fields_that_the_sdk_adds(argv, capsys):
    """gcloud receives a model by its full name, and makes a version the default only on request."""
    options = ["--endpoint", "33", "--traffic", "10", "--parent-model", "11", "--dry-run"]
    assert vertex.main([*argv, *options]) == 0
    [line] = [li for li in capsys.readouterr().out.splitlines() if "models upload" in li]

    words = shlex.split(line)
    assert f"--parent-model={PLACE}/models/11" in words
    assert "--version-aliases=default" in words
