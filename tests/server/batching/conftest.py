"""A model without a device, and a gate in front of it."""

from pytest import fixture

from tests.server.fakes import FakeModel, Gate


@fixture
def model():
    """A model with a bucket of 1 and one of 4."""
    return FakeModel()


@fixture
def gate(model):
    """Blocks before every run of the model."""
    model.before = Gate()
    return model.before
