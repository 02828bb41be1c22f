"""A batch prediction that is killed anywhere loses, doubles and reorders nothing."""

from pytest import mark

from tests.e2e.batch_kills import FORMATS, killed, made


@mark.e2e
@mark.parametrize("format_", FORMATS)
def test_a_killed_run_goes_on_to_the_same_bytes(format_, classifier_bundle, tmp_path):
    """Killed at two random moments, it ends with the same bytes as a run that was not killed."""
    source = made(format_, tmp_path)

    killed(classifier_bundle, source, format_, 2, seed=1, folder=tmp_path)
