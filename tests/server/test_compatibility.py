"""Which bundles a server accepts, and how long it reports that they stay loadable."""

import contextlib
import datetime as dt
import re

from pytest import fixture, mark, raises

from runtime import BundleError, IntegrityError, open_bundle, startup
from runtime.promises import compatibility_windows
from server.config import ConfigError, ServerConfig
from server.observability import prometheus
from server.startup import open_model
from tests.altered_bundles import FROZEN, with_deadly_program
from tests.server.fakes import FakeModel
from tests.server.flask_client import client_for
from tests.serving import TIMEOUT_S, free_port, start


@fixture
def probed(monkeypatch):
    """Stands in for the other process: records what was to be opened there."""
    asked = []

    @contextlib.contextmanager
    def probing(bundle, device, cache, **_):
        asked.append((bundle.digest, device, cache is not None))
        yield None

    monkeypatch.setattr(startup, "probing", probing)
    return asked


def test_any_bundle_is_probed(probed, tmp_path):
    """A bundle without a required digest is test-loaded first, with the cache that remembers it."""
    digest = open_bundle(FROZEN).digest

    open_model(ServerConfig(bundle=str(FROZEN), device="cpu", cache_dir=str(tmp_path)))
    open_model(ServerConfig(bundle=str(FROZEN)))

    assert probed == [(digest, "cpu", True), (digest, "", False)]


def test_required_bundle_is_let_in(probed):
    """The bundle whose digest is required is opened at once."""
    digest = open_bundle(FROZEN).digest

    open_model(ServerConfig(bundle=str(FROZEN), require_digest=f"sha256:{digest}"))

    assert probed == []


def test_another_bundle_is_refused(probed):
    """A bundle of another digest than the required one is not opened anywhere."""
    with raises(IntegrityError, match=r"^manifest\.json: expected the digest sha256:00"):
        open_model(ServerConfig(bundle=str(FROZEN), require_digest="sha256:" + "0" * 64))

    assert probed == []


@mark.parametrize("digest", ["latest", "0" * 64, "sha256:abc", "sha512:" + "0" * 64])
def test_digest_that_is_none_is_refused(digest):
    """An invalid digest ends the server before it starts to load."""
    with raises(ConfigError) as caught:
        ServerConfig(bundle="b", require_digest=digest)

    assert str(caught.value) == (
        "require_digest: expected sha256: and the 64 hex digits that python -m runtime inspect "
        f"shows, got {digest!r}"
    )


@mark.e2e
def test_deadly_bundle_ends_the_server_in_order(tmp_path):
    """A bundle that crashes the process that opens it is exit status 3 and one line, not a crash."""
    bundle = with_deadly_program(tmp_path / "deadly")

    with start(free_port(), "--bundle", str(bundle), HLOSERVE_REQUIRE_DIGEST="") as process:
        said, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 3
    assert "test-loading the bundle in a separate process, in case it is damaged; " in said
    assert errors == (
        f"error: bundle {bundle}: ended the process that opened it: SIGSEGV; it is damaged, or "
        "made to do that\n"
    )


@mark.e2e
def test_server_says_how_long_its_bundle_lasts(tmp_path):
    """A server without a required digest remembers what survived, and logs its compatibility windows."""
    options = {"HLOSERVE_REQUIRE_DIGEST": "", "HLOSERVE_CACHE_DIR": str(tmp_path)}
    opened = []
    for _ in range(2):
        said = []
        with start(free_port(), "--bundle", str(FROZEN), **options) as process:
            for line in process.stdout:
                said.append(line)
                if "ready: " in line:
                    break
            process.terminate()
            process.communicate(timeout=TIMEOUT_S)
        opened.append(any("test-loading" in line for line in said))

        assert re.search(
            r"INFO the bundle loads from \.exported with JAX built until 2027-04-21 \(-?\d+ days left\), "
            r"from \.stablehlo with JAX built until 2031-10-21 \(-?\d+ days left\)",
            "".join(said),
        )
    assert opened == [True, False]


def test_days_left_are_a_metric(running, monkeypatch):
    """A scrape has the days for each form, counted from the day of the scrape."""
    monkeypatch.setattr(prometheus, "today", lambda: dt.date(2027, 4, 22))

    text = client_for(running, FakeModel()).get("/metrics").get_data(as_text=True)

    assert 'hloserve_promised_days_left{form="exported"} -1.0\n' in text
    assert 'hloserve_promised_days_left{form="stablehlo"} 1643.0\n' in text
    assert [p.form for p in compatibility_windows(FakeModel().manifest)] == [
        "exported",
        "stablehlo",
    ]


def test_probe_that_fails_keeps_the_bundle_out(monkeypatch):
    """A bundle that crashed the other process is not opened in this one."""

    def fail(*_, **__):
        raise BundleError("bundle b: ended the process that opened it: SIGSEGV")

    monkeypatch.setattr(startup, "probing", fail)

    with raises(BundleError, match="SIGSEGV"):
        open_model(ServerConfig(bundle=str(FROZEN)))
