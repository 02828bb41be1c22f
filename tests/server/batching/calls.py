"""Requests to a service on the test's own event loop, over a model that is a fake."""

import asyncio
import functools

import numpy as np

from tests.server.fakes import ask


def on_a_loop(test):
    """Run a coroutine as a test, which ends after 30 s at the latest."""

    @functools.wraps(test)
    def run(**fixtures):
        asyncio.run(asyncio.wait_for(test(**fixtures), 30))

    return run


def rows(*numbers):
    """Make the input of a request: a row [n, 0] for each number, whose sum is n."""
    return {"x": np.array([[n, 0] for n in numbers], np.float32).reshape(-1, 2)}


def asked(service, *numbers, timeout_s=None):
    """Begin a request."""
    return asyncio.ensure_future(ask(service, rows(*numbers), timeout_s))


async def sums(request):
    """Return the sums in the response to a request."""
    return (await request).outputs["y"].tolist()


async def begun():
    """Let every request that was just made reach the queue, or the device if it is free."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def waiting(service):
    """Return the rows that wait."""
    return service._scheduler.queue.rows


def ran(model):
    """Return the bucket and the real and repeated numbers of every run."""
    return [(bucket, [row[0] for row in rows]) for bucket, rows in model.ran]


def failing(error, *numbers):
    """Make a model's `before` that raises on some numbers, or on all."""

    def before(rows):
        if not numbers or any(n in rows for n in numbers):
            raise error

    return before
