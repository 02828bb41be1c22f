r"""Put a bundle on a Vertex AI endpoint: upload it, register a model, deploy it.

    python deploy/vertex.py --bundle bundle/ --to gs://BUCKET/models/digits \
        --image REGION-docker.pkg.dev/PROJECT/REPOSITORY/hloserve:cpu \
        --project PROJECT --region REGION --dry-run

`--dry-run` prints each call, and the command lines that do the same; it needs neither the
extra `vertex` nor credentials. docs/deploy-vertex.md goes through it step by step.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle, open_bundle
from runtime.commandline import Parser
from runtime.entries import MANIFEST_NAME
from runtime.errors import BundleError
from server.artifacts import CloudFolder, locate

_PORT, _GRPC_PORT = 8080, 8001
_PROBE = "import urllib.request as r; r.urlopen('http://127.0.0.1:{port}{path}', timeout=9)"


class Wrong(Exception):
    """What is asked for cannot work; says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One thing to do.

    Attributes:
      title: what it does.
      result: name of what it gives to later steps.
      call: what is called, `Model.upload` of the SDK or a method of an earlier result.
      arguments: of the call; a `Result` stands for what an earlier step gave.
      shell: the command lines that do the same.
    """

    title: str
    result: str
    call: str
    arguments: Mapping[str, Any]
    shell: tuple[str, ...]

    def __str__(self) -> str:
        """Write it for a person, as Python and as shell."""
        lines = [f"    {name}={value!r},\n" for name, value in self.arguments.items()]
        python = f"{self.result} = {self.call}(\n{''.join(lines)})"
        return "\n".join([f"# {self.title}", python, *(f"$ {line}" for line in self.shell)])


class Result(str):
    """The name of what an earlier step gave."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Write the bare name."""
        return str(self)


def main(argv: Sequence[str]) -> int:
    """Deploy, or print what would be done; returns the exit status."""
    options = parser().parse_args(argv)
    try:
        bundle = open_bundle(options.bundle)
        bundle.check()
        folder = folder_of(options.to, bundle)
        steps = plan(options, bundle, folder)
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    for note in notes(options, bundle):
        print(f"note: {note}", file=sys.stderr)
    if options.dry_run:
        print("\n\n".join([_upload_lines(bundle, folder), *map(str, steps)]))
        return 0
    return _run(options, bundle, folder, steps)


def _run(
    options: argparse.Namespace, bundle: Bundle, folder: CloudFolder, steps: Sequence[Step]
) -> int:
    try:
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import aiplatform
    except ImportError as error:
        hint = "pip install 'hloserve[vertex]', or pass --dry-run"
        print(f"error: deploy/vertex.py needs {error.name}; {hint}", file=sys.stderr)
        return 2
    try:
        upload(bundle, folder, options.project)
        # A handful of calls: HTTP gets through proxies that gRPC does not.
        aiplatform.init(project=options.project, location=options.region, api_transport="rest")
        results = perform(steps, aiplatform)
    except (GoogleAPICallError, GoogleAuthError, ValueError, RuntimeError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    print(f"deployed: {results['endpoint'].resource_name}")
    return 0


def parser() -> Parser:
    """Make the parser of the command line."""
    p = Parser(
        prog="deploy/vertex.py",
        description="Upload a bundle, register it as a model on Vertex AI and deploy it.",
        allow_abbrev=False,
    )
    p.add_argument("--bundle", required=True, metavar="DIR", help="the bundle")
    p.add_argument("--to", required=True, metavar="gs://…", help="folder for bundles of this model")
    p.add_argument("--image", required=True, help="the server's image, in Artifact Registry")
    p.add_argument("--project", required=True)
    p.add_argument("--region", required=True, help="such as us-central1")
    p.add_argument("--name", help="display name (default: the model's)")
    p.add_argument("--parent-model", metavar="ID", help="model this is a new version of")
    p.add_argument("--endpoint", metavar="ID", help="deploy there (default: a new endpoint)")
    p.add_argument(
        "--shared", action="store_true", help="a shared endpoint: 1.5 MB, 60 s (default: dedicated)"
    )
    p.add_argument("--grpc", action="store_true", help=f"let gRPC in, to port {_GRPC_PORT}")
    p.add_argument("--probes", action="store_true", help="have Vertex probe inside the container")
    p.add_argument("--machine-type", default="n1-standard-4", help="(default: %(default)s)")
    p.add_argument("--accelerator-type", metavar="TYPE", help="such as NVIDIA_L4")
    p.add_argument("--accelerator-count", type=int, default=1, metavar="N")
    p.add_argument("--min-replicas", type=int, default=1, metavar="N")
    p.add_argument("--max-replicas", type=int, default=1, metavar="N")
    p.add_argument(
        "--traffic",
        type=int,
        default=100,
        metavar="PERCENT",
        help="share of the endpoint's traffic; other models share the rest (default: 100)",
    )
    p.add_argument("--service-account", metavar="EMAIL", help="that the container runs as")
    p.add_argument(
        "--deployment-timeout-s", type=int, default=1800, metavar="S", help="(default: %(default)s)"
    )
    p.add_argument("--dry-run", action="store_true", help="print what would be done")
    return p


def folder_of(to: str, bundle: Bundle) -> CloudFolder:
    """Give the folder of this very bundle: what is in it never changes."""
    try:
        place = locate(to)
    except ValueError as error:
        raise Wrong(f"--to: {error}") from None
    if not isinstance(place, CloudFolder):
        raise Wrong(f"--to: expected gs://BUCKET/FOLDER, got {to!r}")
    return CloudFolder(place.bucket, f"{place.prefix}{bundle.digest[:12]}/")


def notes(options: argparse.Namespace, bundle: Bundle) -> list[str]:
    """Say what works, but not as well as it could."""
    found = []
    if not options.image.startswith(f"{options.region}-docker.pkg.dev/"):
        found.append(f"Vertex pulls images from Artifact Registry in {options.region} only")
    largest = max(bundle.manifest.buckets)
    if largest < 64:
        found.append(f"batch prediction sends 64 instances, the largest bucket is {largest}")
    return found


def plan(options: argparse.Namespace, bundle: Bundle, folder: CloudFolder) -> list[Step]:
    """Say what to call, in order.

    Raises:
      Wrong: the options contradict each other, or the bundle.
    """
    _check(options, bundle)
    name = options.name or bundle.manifest.name
    steps = [_model(options, name, folder)]
    if options.endpoint:
        steps.append(_known_endpoint(options))
    else:
        steps.append(_new_endpoint(options, name))
    return [*steps, _deployment(options, name)]


def _check(options: argparse.Namespace, bundle: Bundle) -> None:
    platform = "cuda" if options.accelerator_type else "cpu"
    if platform not in bundle.manifest.platforms:
        has = ", ".join(bundle.manifest.platforms)
        raise Wrong(f"bundle {bundle.path}: expected platform {platform}, got {has}")
    if not 1 <= options.min_replicas <= options.max_replicas:
        got = f"{options.min_replicas} to {options.max_replicas}"
        raise Wrong(f"replicas: expected 1 <= --min-replicas <= --max-replicas, got {got}")
    if not 0 <= options.traffic <= 100:
        raise Wrong(f"--traffic: expected 0 to 100, got {options.traffic}")
    if options.grpc and options.shared:
        raise Wrong("--grpc: expected a dedicated endpoint, got --shared")
    if not 1 <= options.deployment_timeout_s <= 7200:
        got = options.deployment_timeout_s
        raise Wrong(f"--deployment-timeout-s: expected 1 to 7200, got {got}")


def _where(options: argparse.Namespace) -> list[str]:
    return [f"--project={options.project}", f"--region={options.region}"]


def _model(options: argparse.Namespace, name: str, folder: CloudFolder) -> Step:
    arguments: dict[str, Any] = {
        "display_name": name,
        "parent_model": options.parent_model,
        "artifact_uri": str(folder),
        "serving_container_image_uri": options.image,
        "serving_container_predict_route": "/predict",
        "serving_container_health_route": "/health",
        "serving_container_ports": [_PORT],
        "serving_container_grpc_ports": [_GRPC_PORT] if options.grpc else None,
        "serving_container_environment_variables": {"HLOSERVE_LOG_FORMAT": "json"},
        "serving_container_deployment_timeout": options.deployment_timeout_s,
    }
    if options.probes:
        # Started is who listens, even while it loads; healthy is who is ready.
        for probe, path in (("startup", "/v2/health/live"), ("health", "/health")):
            command = ["python", "-c", _PROBE.format(port=_PORT, path=path)]
            arguments[f"serving_container_{probe}_probe_exec"] = command
            arguments[f"serving_container_{probe}_probe_period_seconds"] = 10
            arguments[f"serving_container_{probe}_probe_timeout_seconds"] = 10
    given = {key: value for key, value in arguments.items() if value is not None}
    flags = [_flag(key, value) for key, value in given.items()]
    line = shlex.join(["gcloud", "ai", "models", "upload", *_where(options), *flags])
    return Step("register the model", "model", "aiplatform.Model.upload", given, (line,))


def _flag(key: str, value: Any) -> str:
    """Write an argument of Model.upload as gcloud calls it."""
    key = key.removeprefix("serving_").replace("environment_variables", "env_vars")
    key = key.replace("deployment_timeout", "deployment_timeout_seconds")
    if isinstance(value, dict):
        value = ",".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list):
        # gcloud reads the separator from in front where it is not a comma, which code may hold.
        code = any("," in str(item) for item in value)
        value = "^|^" + "|".join(value) if code else ",".join(map(str, value))
    return f"--{key.replace('_', '-')}={value}"


def _new_endpoint(options: argparse.Namespace, name: str) -> Step:
    arguments = {"display_name": name, "dedicated_endpoint_enabled": not options.shared}
    if options.shared:
        flags = ["gcloud", "ai", "endpoints", "create", *_where(options), f"--display-name={name}"]
        shell = shlex.join(flags)
    else:  # gcloud has no flag for it
        body = json.dumps({"displayName": name, "dedicatedEndpointEnabled": True})
        url = (
            f"https://{options.region}-aiplatform.googleapis.com/v1/projects/{options.project}"
            f"/locations/{options.region}/endpoints"
        )
        shell = (
            'curl -X POST -H "Authorization: Bearer $(gcloud auth print-access-token)" '
            f"-H 'Content-Type: application/json' -d {shlex.quote(body)} {url}"
        )
    call = "aiplatform.Endpoint.create"
    return Step("make an endpoint", "endpoint", call, arguments, (shell,))


def _known_endpoint(options: argparse.Namespace) -> Step:
    line = ["gcloud", "ai", "endpoints", "describe", options.endpoint, *_where(options)]
    arguments = {"endpoint_name": options.endpoint}
    call = "aiplatform.Endpoint"
    return Step("find the endpoint", "endpoint", call, arguments, (shlex.join(line),))


def _deployment(options: argparse.Namespace, name: str) -> Step:
    arguments: dict[str, Any] = {
        "model": Result("model"),
        "deployed_model_display_name": name,
        "machine_type": options.machine_type,
        "min_replica_count": options.min_replicas,
        "max_replica_count": options.max_replicas,
        "traffic_percentage": options.traffic,
        "service_account": options.service_account,
        "deploy_request_timeout": options.deployment_timeout_s,
    }
    flags = [
        *("--model=MODEL_ID", f"--display-name={name}", f"--machine-type={options.machine_type}"),
        f"--min-replica-count={options.min_replicas}",
        f"--max-replica-count={options.max_replicas}",
        f"--traffic-split=0={options.traffic}"
        + ("" if options.traffic == 100 else f",OTHER_ID={100 - options.traffic}"),
    ]
    if options.accelerator_type:
        arguments["accelerator_type"] = options.accelerator_type
        arguments["accelerator_count"] = options.accelerator_count
        kind = options.accelerator_type.lower().replace("_", "-")
        flags.append(f"--accelerator=type={kind},count={options.accelerator_count}")
    if options.service_account:
        flags.append(f"--service-account={options.service_account}")
    given = {key: value for key, value in arguments.items() if value is not None}
    endpoint = options.endpoint or "ENDPOINT_ID"
    words = ["gcloud", "ai", "endpoints", "deploy-model", endpoint, *_where(options), *flags]
    return Step(
        "deploy the model to it", "deployed", "endpoint.deploy", given, (shlex.join(words),)
    )


def perform(steps: Sequence[Step], sdk: Any) -> dict[str, Any]:
    """Make the calls; returns their results by name."""
    known: dict[str, Any] = {"aiplatform": sdk}
    for step in steps:
        print(f"{step.title} …", flush=True)
        first, *rest = step.call.split(".")
        function = known[first]
        for name in rest:
            function = getattr(function, name)
        arguments = {
            key: known[value] if isinstance(value, Result) else value
            for key, value in step.arguments.items()
        }
        known[step.result] = function(**arguments)
    return known


def _upload_lines(bundle: Bundle, folder: CloudFolder) -> str:
    path = str(bundle.path)
    files = ["gcloud", "storage", "rsync", "--recursive", f"--exclude=^{MANIFEST_NAME}$", path]
    last = ["gcloud", "storage", "cp", str(Path(path) / MANIFEST_NAME), f"{folder}/{MANIFEST_NAME}"]
    shell = [shlex.join([*files, str(folder)]), shlex.join(last)]
    return "\n".join(["# upload the bundle, its manifest last", *(f"$ {line}" for line in shell)])


def upload(bundle: Bundle, folder: CloudFolder, project: str | None) -> None:
    """Upload what is not there yet; the manifest comes last, and says that all the others are."""
    from google.api_core.exceptions import PreconditionFailed
    from google.cloud import storage

    bucket = storage.Client(project=project).bucket(folder.bucket)
    for path in (*(file.path for file in bundle.manifest.files), MANIFEST_NAME):
        blob = bucket.blob(folder.name_of(path))
        try:
            # The folder is named by the bundle's digest: what is there is the same.
            blob.upload_from_filename(str(bundle.path / path), if_generation_match=0)
            print(f"uploaded {folder}/{path}", flush=True)
        except PreconditionFailed:
            print(f"there already: {folder}/{path}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
