"""What deploying a bundle calls, in order, and the command lines that do the same."""

import argparse
import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

import server.options
from runtime.accelerators import (
    MEMORY_FRACTION,
    MEMORY_VARIABLE,
    UnknownCard,
    card_named,
    size,
)
from runtime.bundle import Bundle
from runtime.card_report import read_report
from runtime.claims import bytes_by_program
from runtime.storage.uri import CloudFolder
from server.config import ConfigError

PORT, GRPC_PORT = 8080, 8001
# Variables that say what the calls say as well.
_OWN = tuple(
    f"HLOSERVE_{name}"
    for name in (
        *("BUNDLE", "REQUIRE_DIGEST", "HOST", "PORT", "GRPC_PORT"),
        *("PREDICT_ROUTE", "HEALTH_ROUTE"),
    )
)
# What the types of the machines begin with that have an accelerator, as far as they are known.
_ANY_OR_NONE = "n1-"
_MACHINES = {
    **dict.fromkeys(("NVIDIA_TESLA_P4", "NVIDIA_TESLA_P100", "NVIDIA_TESLA_V100"), _ANY_OR_NONE),
    "NVIDIA_TESLA_T4": _ANY_OR_NONE,
    "NVIDIA_L4": "g2-",
    "NVIDIA_TESLA_A100": "a2-",
    "NVIDIA_A100_80GB": "a2-ultragpu-",
    "NVIDIA_H100_80GB": "a3-",
    "NVIDIA_H100_MEGA_80GB": "a3-megagpu-",
    "NVIDIA_H200_141GB": "a3-ultragpu-",
}
_PROBE = "import urllib.request as r; r.urlopen('http://127.0.0.1:{port}{path}', timeout=9)"


class Wrong(Exception):
    """What is asked for cannot work; says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One thing to do.

    Attributes:
      title: what it does.
      result: name of its result for later steps.
      call: what is called, `Model.upload` of the SDK or a method of an earlier result.
      arguments: of the call; a `Result` stands for that of an earlier step.
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
    """The name of an earlier step's result."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Write the bare name."""
        return str(self)


def plan(options: argparse.Namespace, bundle: Bundle, folder: CloudFolder) -> list[Step]:
    """Return what to call, in order.

    Raises:
      Wrong: the options contradict each other, or the bundle.
    """
    _check(options, bundle)
    name = options.name or bundle.manifest.name
    steps = [_model(options, name, folder, bundle.digest)]
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
    _check_machine(options)
    _check_card(options, bundle)
    if not 1 <= options.min_replicas <= options.max_replicas:
        got = f"{options.min_replicas} to {options.max_replicas}"
        raise Wrong(f"replicas: expected 1 <= --min-replicas <= --max-replicas, got {got}")
    if not 0 <= options.traffic <= 100:
        raise Wrong(f"--traffic: expected 0 to 100, got {options.traffic}")
    if options.traffic != 100 and not options.endpoint:
        raise Wrong(
            f"--traffic: expected 100 for a new endpoint, got {options.traffic}; pass --endpoint"
        )
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+", options.region):
        raise Wrong(f"--region: expected a region such as us-central1, got {options.region!r}")
    if options.shared and options.endpoint:
        raise Wrong("--shared: expected a new endpoint, got --endpoint, which is what it is")
    if options.grpc and options.shared:
        raise Wrong("--grpc: expected a dedicated endpoint, got --shared")
    if not 1 <= options.deployment_timeout_s <= 7200:
        got = options.deployment_timeout_s
        raise Wrong(f"--deployment-timeout-s: expected 1 to 7200, got {got}")


def _check_machine(options: argparse.Namespace) -> None:
    """Check machine and accelerator against each other: Vertex does so once all else is there."""
    kind, count, machine = (
        options.accelerator_type,
        options.accelerator_count,
        options.machine_type,
    )
    if not kind:
        if count is not None:
            raise Wrong("--accelerator-type: expected one for --accelerator-count, got none")
        own = [known for known, begins in _MACHINES.items() if machine.startswith(begins)]
        if own and not machine.startswith(_ANY_OR_NONE):
            raise Wrong(f"--accelerator-type: expected {own[0]} for {machine}, got none")
        return
    if not re.fullmatch(r"NVIDIA_[A-Z0-9_]+", kind):
        raise Wrong(f"--accelerator-type: expected one such as NVIDIA_L4, got {kind!r}")
    if count is not None and count < 1:
        raise Wrong(f"--accelerator-count: expected at least 1, got {count}")
    begins = _MACHINES.get(kind, "")
    if not machine.startswith(begins):
        raise Wrong(f"--machine-type: expected {begins}… for {kind}, got {machine}")


def _check_card(options: argparse.Namespace, bundle: Bundle) -> None:
    """Refuse a GPU that cannot run the bundle, before anything is uploaded.

    By the report of what compiles for it where there is one beside the bundle; else by what the
    manifest says, which is less than a run takes: what XLA needs beside inputs and outputs is not known.
    """
    try:
        card = card_named(options.accelerator_type or "")
    except UnknownCard:
        return
    usable = card.usable_bytes(_memory_fraction(options))
    report = read_report(bundle.path, bundle.digest)
    programs = report.of(card) if report else ()
    for program in programs:
        if not program.compiles:
            raise Wrong(
                f"--accelerator-type: expected a card that the bundle compiles for, got "
                f"{card.vertex}: program {program.program}: {program.reason}"
            )
    name, needed = max(
        [(p.program, p.needed_bytes) for p in programs] or bytes_by_program(bundle.manifest),
        key=lambda one: one[1],
    )
    if needed > usable:
        least = "" if programs else "at least "
        raise Wrong(
            f"--accelerator-type: program {name} takes {least}{size(needed)} with the weights: expected a "
            f"card of which JAX takes that, got {card.vertex} with {size(usable)} of "
            f"{size(card.memory_bytes)}; choose one with more, or export smaller buckets"
        )


def _memory_fraction(options: argparse.Namespace) -> float:
    for item in options.env:
        name, _, value = item.partition("=")
        if name == MEMORY_VARIABLE:
            if not re.fullmatch(r"0?\.\d+|1(\.0+)?", value) or not float(value):
                raise Wrong(f"--env: {name}: expected a part such as 0.9, got {value!r}")
            return float(value)
    return MEMORY_FRACTION


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the variables that were asked for, once the server would take them."""
    found = {}
    for item in options.env:
        name, equals, value = item.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise Wrong(f"--env: expected NAME=VALUE, got {item!r}")
        if name.startswith("AIP_") or name in _OWN:
            raise Wrong(f"--env: expected a variable that deploying leaves free, got {name}")
        if name.startswith("HLOSERVE_") and name not in _known_variables():
            raise Wrong(f"--env: {name} is no variable of the server; see python -m server --help")
        found[name] = value
    try:
        config = server.options.parse([], {**found, "HLOSERVE_BUNDLE": "gs://there"})
    except ConfigError as error:
        raise Wrong(f"--env: {error}") from None
    if config.processes > 1 and options.accelerator_type:
        raise Wrong(f"--env: expected one process on a GPU, got {config.processes}")
    if config.device not in ("", "cpu") and not options.accelerator_type:
        raise Wrong(f"--env: expected an --accelerator-type for the device {config.device!r}")
    return found


def _known_variables() -> set[str]:
    return {name for option in server.options.options() for name in option.variables}


def _where(options: argparse.Namespace) -> list[str]:
    return [f"--project={options.project}", f"--region={options.region}"]


def _model(options: argparse.Namespace, name: str, folder: CloudFolder, digest: str) -> Step:
    arguments: dict[str, Any] = {
        "display_name": name,
        "parent_model": options.parent_model,
        "artifact_uri": str(folder),
        "serving_container_image_uri": options.image,
        "serving_container_predict_route": "/predict",
        "serving_container_health_route": "/health",
        "serving_container_ports": [PORT],
        "serving_container_grpc_ports": [GRPC_PORT] if options.grpc else None,
        # The server takes this bundle alone, and need not try it out in another process first.
        "serving_container_environment_variables": {
            "HLOSERVE_REQUIRE_DIGEST": f"sha256:{digest}",
            "HLOSERVE_LOG_FORMAT": "json",
            # An image without CUDA would compute on the CPU beside an idle accelerator.
            **({"HLOSERVE_DEVICE": "cuda"} if options.accelerator_type else {}),
            **_environment(options),
        },
        "serving_container_deployment_timeout": options.deployment_timeout_s,
    }
    if options.probes:
        # Started is who listens, even while it loads; healthy is who is ready.
        for probe, path in (("startup", "/v2/health/live"), ("health", "/health")):
            command = ["python", "-c", _PROBE.format(port=PORT, path=path)]
            arguments[f"serving_container_{probe}_probe_exec"] = command
            arguments[f"serving_container_{probe}_probe_period_seconds"] = 10
            arguments[f"serving_container_{probe}_probe_timeout_seconds"] = 10
    given = {key: value for key, value in arguments.items() if value is not None}
    spelled_out = dict(given)
    if options.parent_model:
        # By its whole name; and the version to be deployed is one that the SDK makes the default.
        models = f"projects/{options.project}/locations/{options.region}/models/"
        spelled_out["parent_model"] = models + options.parent_model.removeprefix(models)
        spelled_out["version_aliases"] = "default"
    flags = [_flag(key, value) for key, value in spelled_out.items()]
    line = shlex.join(["gcloud", "ai", "models", "upload", *_where(options), *flags])
    return Step("register the model", "model", "aiplatform.Model.upload", given, (line,))


def _flag(key: str, value: Any) -> str:
    """Write an argument of Model.upload as gcloud calls it."""
    key = key.removeprefix("serving_").replace("environment_variables", "env_vars")
    key = key.replace("deployment_timeout", "deployment_timeout_seconds")
    if isinstance(value, dict):
        value = [f"{k}={v}" for k, v in value.items()]
    if isinstance(value, list):
        # gcloud reads the separator from in front where it is not a comma, which an item may hold.
        items = list(map(str, value))
        mark = next((mark for mark in ",|;#~" if not any(mark in item for item in items)), ",")
        value = mark.join(items) if mark == "," else f"^{mark}^{mark.join(items)}"
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
        arguments["accelerator_count"] = options.accelerator_count or 1
        kind = options.accelerator_type.lower().replace("_", "-")
        flags.append(f"--accelerator=type={kind},count={options.accelerator_count or 1}")
    if options.service_account:
        flags.append(f"--service-account={options.service_account}")
    given = {key: value for key, value in arguments.items() if value is not None}
    endpoint = options.endpoint or "ENDPOINT_ID"
    words = ["gcloud", "ai", "endpoints", "deploy-model", endpoint, *_where(options), *flags]
    return Step(
        "deploy the model to it", "deployed", "endpoint.deploy", given, (shlex.join(words),)
    )
