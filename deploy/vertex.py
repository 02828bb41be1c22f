r"""Put a bundle on a Vertex AI endpoint: upload it, register a model, deploy it.

    python -m deploy.vertex --bundle bundle/ --to gs://BUCKET/models/digits \
        --image REGION-docker.pkg.dev/PROJECT/REPOSITORY/hloserve:cpu \
        --project PROJECT --region REGION --dry-run

`--dry-run` prints each call, and the command lines that do the same; it needs neither the
extra `vertex` nor credentials. docs/deploy-vertex.md goes through it step by step.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.steps import GRPC_PORT, Result, Step, Wrong, plan
from runtime.bundle import Bundle, open_bundle
from runtime.commandline import Parser, add_version, to_read
from runtime.entries import MANIFEST_NAME
from runtime.errors import BundleError
from runtime.storage.uri import CloudFolder, locate


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
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import aiplatform

        from deploy.refusals import explained
    except ImportError as error:
        hint = "pip install 'hloserve[vertex]', or pass --dry-run"
        print(f"error: python -m deploy.vertex needs {error.name}; {hint}", file=sys.stderr)
        return 2
    known: dict[str, Any] = {"aiplatform": aiplatform}
    try:
        # A handful of calls: HTTP gets through proxies that gRPC does not.
        aiplatform.init(project=options.project, location=options.region, api_transport="rest")
        upload(bundle, folder, options.project)
        perform(steps, known)
    except KeyboardInterrupt:
        print("error: interrupted; Vertex AI goes on with what it was asked to do", file=sys.stderr)
        status = 130
    except (GoogleAPIError, GoogleAuthError, OSError, ValueError, RuntimeError) as error:
        print(f"error: {explained(error, options.region)}", file=sys.stderr)
        status = 1
    else:
        print(f"deployed: {known['endpoint'].resource_name}")
        return 0
    if "endpoint" in known:
        model, endpoint = known["model"].name, known["endpoint"].name
        again = f"--parent-model {model} --endpoint {endpoint}"
        print(f"note: model and endpoint are there; to go on with them, {again}", file=sys.stderr)
    return status


def parser() -> Parser:
    """Make the parser of the command line."""
    p = Parser(
        prog="python -m deploy.vertex",
        description="Upload a bundle, register it as a model on Vertex AI and deploy it.",
        allow_abbrev=False,
    )
    add_version(p)
    p.add_argument("--bundle", required=True, type=to_read, metavar="DIR", help="the bundle")
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
    p.add_argument("--grpc", action="store_true", help=f"let gRPC in, to port {GRPC_PORT}")
    p.add_argument("--probes", action="store_true", help="have Vertex probe inside the container")
    p.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="variable of the container, such as HLOSERVE_PROCESSES=4; may be repeated",
    )
    p.add_argument("--machine-type", default="n1-standard-4", help="(default: %(default)s)")
    p.add_argument("--accelerator-type", metavar="TYPE", help="such as NVIDIA_L4")
    p.add_argument("--accelerator-count", type=int, metavar="N", help="of them (default: 1)")
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
    """Return the folder of this very bundle: what is in it never changes."""
    try:
        place = locate(to)
    except ValueError as error:
        raise Wrong(f"--to: {error}") from None
    if not isinstance(place, CloudFolder):
        raise Wrong(f"--to: expected gs://BUCKET/FOLDER, got {to!r}")
    return CloudFolder(place.bucket, f"{place.prefix}{bundle.digest[:12]}/")


def notes(options: argparse.Namespace, bundle: Bundle) -> list[str]:
    """Return what works, but not as well as it could."""
    found = []
    if not options.image.startswith(f"{options.region}-docker.pkg.dev/"):
        found.append(f"Vertex pulls images from Artifact Registry in {options.region} only")
    largest = max(bundle.manifest.buckets)
    if largest < 64:
        found.append(f"batch prediction sends 64 instances, the largest bucket is {largest}")
    return found


def perform(steps: Sequence[Step], known: dict[str, Any]) -> None:
    """Make the calls.

    Args:
      steps: what to call.
      known: what they may name; their results are added.
    """
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


def _upload_lines(bundle: Bundle, folder: CloudFolder) -> str:
    path = str(bundle.path)
    files = ["gcloud", "storage", "rsync", "--recursive", f"--exclude=^{MANIFEST_NAME}$", path]
    last = ["gcloud", "storage", "cp", str(Path(path) / MANIFEST_NAME), f"{folder}/{MANIFEST_NAME}"]
    shell = [shlex.join([*files, str(folder)]), shlex.join(last)]
    return "\n".join(["# upload the bundle, its manifest last", *(f"$ {line}" for line in shell)])


def upload(bundle: Bundle, folder: CloudFolder, project: str | None) -> None:
    """Upload what is not there yet; the manifest is last, and says that all the others are there."""
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
    if "--dry-run" in sys.argv:  # ends quietly before `head`, as tools do; an upload goes on
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
