"""A server whose environment sets everything that JAX reads."""

import subprocess
import sys

from pytest import mark

from tests.runtime.test_jax_settings import ENVIRONMENT
from tests.serving import ROOT, serving

pytestmark = mark.e2e


def test_a_server_answers_rightly_under_every_setting_of_jax(classifier_bundle):
    """Guards, debug checks, 64-bit types and disabled compilation: the answers stay the same."""
    body = {"instances": [[0.5, -1.0, 2.0, 0.25], [1.0, 2.0, 3.0, 4.0]]}
    with serving("--bundle", str(classifier_bundle)) as usual:
        expected = usual.post(body)

    with serving("--bundle", str(classifier_bundle), **ENVIRONMENT) as served:
        answers = [served.post(body) for _ in range(3)]

    assert expected[0] == 200
    assert answers == [expected] * 3


def test_a_bundle_is_opened_elsewhere_under_every_setting_of_jax(classifier_bundle):
    """The process that opens a bundle first has the same environment, and finds nothing wrong."""
    environ = {**ENVIRONMENT, "HLOSERVE_REQUIRE_DIGEST": ""}
    with serving("--bundle", str(classifier_bundle), **environ) as served:
        assert served.post({"instances": [[1, 2, 3, 4]]})[0] == 200


def test_a_setting_that_jax_refuses_is_a_wrong_configuration(classifier_bundle):
    """A variable that JAX cannot read ends the server at once, with one line and status 2."""
    done = subprocess.run(
        [sys.executable, "-m", "server", "--bundle", str(classifier_bundle)],
        cwd=ROOT,
        env={"PATH": "", "JAX_TRANSFER_GUARD": "disalow"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 2
    assert done.stderr == (
        "error: JAX does not take a setting of the environment: "
        'Invalid value "disalow" for JAX flag jax_transfer_guard\n'
    )
