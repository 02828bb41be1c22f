"""What deploy.vertex refuses before anything is uploaded, and what Cloud Build's words mean."""

import ast
import re
from pathlib import Path

import yaml
from pytest import mark, raises

from deploy import steps, vertex
from runtime.bundle import open_bundle
from tests.deploy.test_vertex import L4
from tests.serving import ROOT


@mark.parametrize(
    ("options", "message"),
    [
        (["--to", "/a"], "--to: expected gs://BUCKET/FOLDER, got '/a'"),
        (["--to", "s3://a"], "--to: expected a directory, gs:// or file://, got 's3://a'"),
        (
            ["--traffic", "10"],
            "--traffic: expected 100 for a new endpoint, got 10; pass --endpoint",
        ),
        (
            ["--region", "us-central1-a"],
            "--region: expected a region such as us-central1, got 'us-central1-a'",
        ),
        (["--traffic", "101"], "--traffic: expected 0 to 100, got 101"),
        (["--shared", "--grpc"], "--grpc: expected a dedicated endpoint, got --shared"),
        (
            ["--min-replicas", "2"],
            "replicas: expected 1 <= --min-replicas <= --max-replicas, got 2 to 1",
        ),
        (["--env", "A"], "--env: expected NAME=VALUE, got 'A'"),
        (
            ["--env", "AIP_HTTP_PORT=1"],
            "--env: expected a variable that deploying leaves free, got AIP_HTTP_PORT",
        ),
        (
            ["--env", "HLOSERVE_PORT=1"],
            "--env: expected a variable that deploying leaves free, got HLOSERVE_PORT",
        ),
        (
            ["--env", "HLOSERVE_WORKERS=4"],
            "--env: HLOSERVE_WORKERS is no variable of the server; see python -m server --help",
        ),
        (
            ["--env", "HLOSERVE_PROCESSES=many"],
            "--env: HLOSERVE_PROCESSES: expected a number of 1 or more, or auto, got 'many'",
        ),
        (
            ["--env", "HLOSERVE_PROCESSES=4", *L4],
            "--env: expected one process on a GPU, got 4",
        ),
        (
            ["--env", "HLOSERVE_DEVICE=cuda"],
            "--env: expected an --accelerator-type for the device 'cuda'",
        ),
        (
            ["--accelerator-type", "NVIDIA_L4"],
            "--machine-type: expected g2-… for NVIDIA_L4, got n1-standard-4",
        ),
        (
            ["--accelerator-type", "nvidia-l4"],
            "--accelerator-type: expected one such as NVIDIA_L4, got 'nvidia-l4'",
        ),
        (
            ["--machine-type", "g2-standard-4"],
            "--accelerator-type: expected NVIDIA_L4 for g2-standard-4, got none",
        ),
        (
            ["--accelerator-count", "2"],
            "--accelerator-type: expected one for --accelerator-count, got none",
        ),
        (
            [*L4, "--accelerator-count", "0"],
            "--accelerator-count: expected at least 1, got 0",
        ),
        (
            ["--shared", "--endpoint", "33"],
            "--shared: expected a new endpoint, got --endpoint, which is what it is",
        ),
        (
            ["--deployment-timeout-s", "7201"],
            "--deployment-timeout-s: expected 1 to 7200, got 7201",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_done(argv, options, message, capsys):
    """Contradictory options are refused in one line, without a request."""
    assert vertex.main([*argv, *options]) == 2

    assert capsys.readouterr().err == f"error: {message}\n"


@mark.parametrize(
    ("kind", "machine"),
    [
        (None, "n1-standard-4"),
        (None, "c3-standard-8"),
        ("NVIDIA_TESLA_T4", "n1-standard-4"),
        ("NVIDIA_TESLA_A100", "a2-highgpu-1g"),
        ("NVIDIA_H100_80GB", "a3-highgpu-8g"),
        ("NVIDIA_NEWER_900GB", "z9-standard-1"),
    ],
)
def test_machines_and_accelerators_that_go_together_are_taken(argv, kind, machine, capsys):
    """A machine and its accelerator pass, and so does a kind that is newer than this."""
    options = ["--accelerator-type", kind, "--accelerator-count", "2"] if kind else []

    assert vertex.main([*argv, *options, "--machine-type", machine, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"    machine_type={machine!r},\n" in printed
    assert printed.count("    accelerator_count=2,\n") == printed.count(",count=2") == bool(kind)


@mark.parametrize(("options", "asked"), [([], None), ([*L4], "cuda")])
def test_an_accelerator_is_not_left_idle(argv, options, asked, capsys):
    """With an accelerator the server is set to take it, so that it ends where its image cannot."""
    assert vertex.main([*argv, *options, "--dry-run"]) == 0
    variables = re.search(r"environment_variables=(\{.*\}),", capsys.readouterr().out)[1]
    assert ast.literal_eval(variables).get("HLOSERVE_DEVICE") == asked

    assert vertex.main([*argv, *options, "--env=HLOSERVE_DEVICE=cpu", "--dry-run"]) == 0
    variables = re.search(r"environment_variables=(\{.*\}),", capsys.readouterr().out)[1]
    assert ast.literal_eval(variables)["HLOSERVE_DEVICE"] == "cpu"


def test_a_bundle_for_another_platform_is_refused(argv):
    """A bundle that has no program for the machine is not uploaded."""
    options = vertex.parser().parse_args([*argv, "--accelerator-type", "NVIDIA_L4"])
    bundle = open_bundle(options.bundle)
    manifest = type("Cpu", (), {"platforms": ("cpu",), "name": "m", "buckets": (1,)})
    only_cpu = type("Bundle", (), {"path": "b", "manifest": manifest, "digest": bundle.digest})
    with raises(steps.Wrong, match="bundle b: expected platform cuda, got cpu"):
        vertex.plan(options, only_cpu, vertex.folder_of(options.to, bundle))


def test_a_damaged_bundle_is_not_uploaded(argv, tmp_path, capsys):
    """An incomplete bundle is refused with status 3."""
    argv[1] = str(tmp_path)

    assert vertex.main(argv) == 3
    assert "expected manifest.json" in capsys.readouterr().err


def test_cloud_build_says_what_its_words_mean():
    """Every substitution of cloudbuild.yaml is Cloud Build's own, or has a default there."""
    text = (ROOT / "deploy" / "cloudbuild.yaml").read_text()
    config = yaml.safe_load(text)
    own = {"LOCATION", "PROJECT_ID"}

    assert set(re.findall(r"\$\{(\w+)\}", text)) <= own | set(config["substitutions"])
    assert config["images"] == ["${_IMAGE}"]
    assert [step["id"] for step in config["steps"]] == ["build", "starts"]
    dockerfile = Path(ROOT / "Dockerfile")
    assert not dockerfile.exists() or "ARG DEVICE" in dockerfile.read_text()


def test_a_url_is_no_bundle_to_upload(argv, capsys):
    """
    What is uploaded lies here: a bundle in a bucket is refused with what copies it.
    """
    argv[1] = "gs://models/iris"

    with raises(SystemExit) as caught:
        vertex.main(argv)

    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: argument --bundle: expected a path on this machine, got 'gs://models/iris'; copy it "
        "here first: gcloud storage cp -r gs://models/iris . and pass iris\n"
    )
