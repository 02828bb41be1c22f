"""What deploy.vertex refuses by a card's memory, and by the report of what compiles for it."""

import dataclasses

from pytest import fixture, mark

from deploy import vertex
from runtime import accelerators
from runtime.bundle import open_bundle
from runtime.card_report import CardReport, ProgramOnCard, keep_report
from tests.deploy.conftest import IMAGE
from tests.deploy.test_vertex import L4

T4 = ("--accelerator-type", "NVIDIA_TESLA_T4", "--machine-type", "n1-standard-4")


@fixture
def bundle(iris_bundle, tmp_path):
    """A copy of a bundle, which a report may stand beside."""
    for file in iris_bundle.rglob("*"):
        if file.is_file():
            target = tmp_path / "bundle" / file.relative_to(iris_bundle)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return tmp_path / "bundle"


@fixture
def deploying(bundle, capsys):
    """Deploy with --dry-run; return the exit status and the output."""

    def run(*options):
        argv = [
            "--bundle",
            str(bundle),
            "--to",
            "gs://models/a",
            "--image",
            IMAGE,
            "--project",
            "p",
        ]
        status = vertex.main([*argv, "--region", "us-central1", "--dry-run", *options])
        return status, capsys.readouterr().err

    return run


def small(monkeypatch, name, memory):
    """Make a known card one with less memory."""
    card = dataclasses.replace(accelerators.CARDS[name], memory_bytes=memory)
    monkeypatch.setitem(accelerators.CARDS, name, card)


def reported(bundle, card, **program):
    """Write a report of one program."""
    digest = open_bundle(bundle).digest
    found = ProgramOnCard(card=card, program="b8", **program)
    keep_report(bundle, CardReport(bundle=digest, versions={}, programs=(found,)))


def test_weights_that_no_card_of_the_kind_holds_are_refused_without_a_compiler(
    deploying, monkeypatch
):
    """Without a report the manifest says what a run takes at least."""
    small(monkeypatch, "t4", 100)

    status, said = deploying(*T4)

    assert status == 2
    assert said.startswith("error: --accelerator-type: program b")
    assert said.endswith(
        " with the weights: expected a card of which JAX takes that, got NVIDIA_TESLA_T4 with 75 B of 100 B; "
        "choose one with more, or export smaller buckets\n"
    )
    assert " takes at least " in said


def test_the_part_that_jax_takes_is_the_containers_to_say(deploying, monkeypatch, bundle):
    """XLA_PYTHON_CLIENT_MEM_FRACTION for the container counts; what is no part is refused."""
    reported(bundle, "t4", argument_bytes=800, temp_bytes=50)
    small(monkeypatch, "t4", 1000)
    variable = "XLA_PYTHON_CLIENT_MEM_FRACTION"

    assert deploying(*T4)[0] == 2
    assert deploying(*T4, "--env", f"{variable}=0.9")[0] == 0
    assert deploying(*T4, "--env", f"{variable}=90")[1] == (
        f"error: --env: {variable}: expected a part such as 0.9, got '90'\n"
    )


def test_a_report_counts_what_a_run_takes_beside_the_weights(deploying, bundle):
    """With a report the figure is XLA's own; another card has its own."""
    reported(bundle, "t4", argument_bytes=9 * 10**9, temp_bytes=5 * 10**9)

    assert deploying(*T4)[1] == (
        "error: --accelerator-type: program b8 takes 14 GB with the weights: expected a card of which JAX takes "
        "that, got NVIDIA_TESLA_T4 with 11.7 GB of 15.7 GB; choose one with more, or export smaller buckets\n"
    )
    assert deploying(*L4)[0] == 0


def test_a_card_that_a_program_does_not_compile_for_is_refused(deploying, bundle):
    """A card that a program does not compile for, by the report, is refused before anything is uploaded."""
    reported(bundle, "l4", reason="UNIMPLEMENTED: no such algorithm")

    status, said = deploying(*L4)

    assert status == 2
    assert said == (
        "error: --accelerator-type: expected a card that the bundle compiles for, got NVIDIA_L4: program b8: "
        "UNIMPLEMENTED: no such algorithm\n"
    )


@mark.parametrize("options", [(), ("--accelerator-type", "NVIDIA_NEWER_900GB")])
def test_without_a_card_that_is_known_nothing_is_compared(deploying, bundle, options):
    """A report about a card does not apply to a CPU, or to a card that is newer than this release."""
    reported(bundle, "t4", reason="no")

    assert deploying(*options)[0] == 0
