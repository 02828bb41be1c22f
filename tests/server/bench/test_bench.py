"""The command line of `python -m server bench`."""

from pytest import mark, param, raises

from server.bench.cli import Measured, main, table
from server.bench.load_generator import LoadResult
from server.doctor import cli as doctor


def refused(capsys, *arguments):
    """Run the bench with arguments that it refuses; return the exit status and stderr."""
    with raises(SystemExit) as ended:
        main(arguments, {})
    return ended.value.code, capsys.readouterr().err


def test_help_is_grouped_with_units_and_defaults(capsys):
    """`--help` says what is measured, each option's unit and default, and the exit statuses."""
    with raises(SystemExit) as ended:
        main(["--help"], {})

    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    for part in (
        "load: --connections N,… connections at once",
        "(default: 1,16,64)",
        "--seconds SECONDS length of a measurement, after a fifth of it to warm up (default: 5)",
        "--rows ROWS instances a request (default: 1)",
        "output: --json print the figures for machines",
        "-- --max-queue-delay-ms 2",
        "exit status: 0 every request was answered",
    ):
        assert part in text


@mark.parametrize(
    ("arguments", "message"),
    [
        param(["--connections", "1,0"], "--connections: expected a number of 1 or more, got '0'"),
        param(
            ["--connections", "many"], "--connections: expected a number of 1 or more, got 'many'"
        ),
        param(["--rows", "-1"], "--rows: expected a number of 1 or more, got '-1'"),
        param(["--seconds", "0"], "--seconds: expected seconds, more than 0, got '0'"),
        param(["--seconds", "nan"], "--seconds: expected seconds, more than 0, got 'nan'"),
        param(["--seconds", "a while"], "--seconds: expected seconds, more than 0, got 'a while'"),
    ],
)
def test_a_bad_number_is_one_line(capsys, arguments, message):
    """A number that makes no sense is one line that names the option."""
    found = refused(capsys, "--bundle", "b", *arguments)

    assert found == (2, f"error: argument {message}\n")


def test_a_typo_is_one_line(capsys):
    """An option that is not there names the nearest."""
    found = refused(capsys, "--bundle", "b", "--conections", "1")

    assert found == (2, "error: --conections: no such option; did you mean --connections?\n")


def test_a_bundle_that_is_not_there_is_one_line(capsys, tmp_path):
    """Without a bundle nothing is started: exit status 3."""
    status = main(["--bundle", str(tmp_path / "none")], {})

    assert status == 3
    assert capsys.readouterr().err == (
        f"error: bundle {tmp_path}/none: expected a directory, got nothing there\n"
    )


@mark.parametrize("run", [main, doctor.main])
def test_a_url_is_no_bundle_here(run, capsys):
    """
    A bundle's URL is refused with the command that copies it, since the bundle is read on this machine.
    """
    with raises(SystemExit) as caught:
        run(["--bundle", "gs://bucket/iris"], {})

    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: argument --bundle: expected a path on this machine, got 'gs://bucket/iris'; copy it "
        "here first: gcloud storage cp -r gs://bucket/iris . and pass iris\n"
    )


def test_numbers_of_devices_are_compared_with_the_first():
    """With several servers measured, each line says how many devices it had and what these gained."""
    loads = {
        (devices, clients): LoadResult(clients, 2.0, (0.001,) * answered, 0)
        for devices, clients, answered in ((1, 1, 10), (1, 64, 100), (2, 1, 10), (2, 64, 190))
    }
    lines = table([Measured(d, load) for (d, _), load in loads.items()], rows=2).splitlines()

    assert [line.split()[:5] for line in lines[1:]] == [
        ["1", "1.00", "1", "5", "10"],
        ["1", "1.00", "64", "50", "100"],
        ["2", "1.00", "1", "5", "10"],
        ["2", "1.90", "64", "95", "190"],
    ]
    assert lines[0].split()[:4] == ["devices", "of", "first", "connections"]
    alone = table([Measured(0, loads[1, 64])], rows=2).splitlines()
    assert alone[0].split()[0] == "connections"
