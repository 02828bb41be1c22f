"""The page at `/`: complete without JavaScript, and it loads nothing from other servers."""

import base64
import dataclasses
import hashlib
import html
import html.parser
import json
import math
import re
import types

from hypothesis import given
from hypothesis import strategies as st
from pytest import approx, fixture, mark

from runtime.bundle import open_bundle
from runtime.entries import OutputFormat
from runtime.inputs import Checker
from runtime.signature import DTYPE_BYTES, Axis, Signature, TensorSpec
from server.http.page import Page
from server.http.page_form import example_bodies, example_instance
from server.metrics import SECONDS, Histogram, quantile
from server.protocols import oip
from tests.image_files import plain
from tests.server.fakes import ECHO, EVERY, SUM, FakeModel, signature
from tests.server.flask_client import client_for, client_of, refused
from tests.server.http_harness import HttpHarness
from tests.server.image_model import WITH_AGE, ImageModel
from tests.server.text_model import EmbeddingModel

LARGE = signature(["x:float32[_, 224, 224, 3]"], ["y:float32[_]"])


@fixture
def client(running):
    """Flask's test client, with a model that sums rows."""
    return client_for(running, FakeModel())


def text_of(client):
    """Get the page."""
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.mimetype == "text/html"
    return answer.get_data(as_text=True)


class Tags(html.parser.HTMLParser):
    """Collects the tags of a page, and raises for one that is closed but not open.

    Attributes:
      seen: (tag, attributes) in order.
      open: those that are not closed.
    """

    def __init__(self, text):
        super().__init__()
        self.seen = []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        """Collect a tag."""
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Close the innermost tag."""
        assert self.open.pop() == tag


def test_the_page_shows_what_is_served(client):
    """Name, version, state, device, digest, signature and buckets are on the page."""
    text = text_of(client)

    for shown in (
        *("<h1>fake</h1>", "ready", "version 1 on cpu", "0" * 64),
        *("x: float32[_, 2]", "y: float32[_]", "1, 4", "<dd>raw</dd>"),
    ):
        assert shown in text


def test_labels_and_axes_are_shown(running):
    """Labels that predictions have, and the sizes of bucketed axes, are on the page."""
    labels = tuple(f"label{i}" for i in range(60))
    form = OutputFormat(kind="classification", output="total", scores="logits", labels=labels)
    text = text_of(client_for(running, FakeModel(signature=ECHO, output_format=form)))

    assert "seq = 4, 8" in text
    assert "classification of total (logits)" in text
    assert "label0, label1" in text
    assert "label49 and 10 more" in text


def test_figures_follow_the_requests(client):
    """The page's numbers are those of the requests so far, without any script."""
    before = text_of(client)
    client.post("/predict", json={"instances": [[1, 2], [3, 4], [5, 6]]})
    client.post("/predict", json={"instances": [[1]]})
    after = text_of(client)

    def figures(text):
        return dict(re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", text))

    assert figures(before)["requests answered"] == "0"
    assert figures(before)["rows a batch"] == figures(before)["99 % answered within"] == "-"
    assert figures(after)["requests answered"] == figures(after)["requests failed"] == "1"
    assert figures(after)["rows"] == "3"
    assert figures(after)["rows a batch"] == "3.0"
    assert figures(after)["rows of padding"] == "25%"
    assert figures(after)["99 % answered within"].endswith(" ms")


def test_every_tag_is_closed_and_nothing_comes_from_elsewhere(client):
    """The page is one well-formed document that asks no other server for anything."""
    tags = Tags(text_of(client))

    assert tags.open == []
    for tag, attributes in tags.seen:
        assert "src" not in attributes
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert attributes.get("href", "data:,") in ("data:,", "/openapi.json"), tag


def test_the_page_reads_to_everyone(client):
    """It has a language, a title, a viewport, headings, and a label for its field."""
    tags = Tags(text_of(client)).seen
    names = [tag for tag, _ in tags]

    assert ("html", {"lang": "en"}) in tags
    assert ("label", {"for": "field1"}) in tags
    assert ("main", {}) in tags
    assert "width=device-width" in str(tags)
    assert names.count("h1") == 1
    assert {"title", "h2", "textarea", "button", "noscript"} <= set(names)


def test_only_its_own_script_and_style_may_run(client):
    """The policy names the script and the style by their digests and allows nothing else."""
    answer = client.get("/")
    text = answer.get_data(as_text=True)
    policy = answer.headers["Content-Security-Policy"]

    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_names_cannot_break_out_of_the_page(running):
    """Names from a bundle are escaped as text."""
    evil = "<script>alert('1')</script>"
    model = FakeModel(
        signature=Signature(
            inputs=(TensorSpec(name=evil, dtype="float32", shape=("_",)),), outputs=SUM.outputs
        ),
        output_format=OutputFormat(kind="softmax", output="y", labels=(evil, "b")),
    )
    model.manifest.name = evil

    text = text_of(client_for(running, model))

    assert evil not in text
    assert html.escape(evil).replace("&#x27;", "&#39;") in text
    assert text.count("<script>") == 1


@mark.parametrize("signature", [SUM, ECHO, EVERY, LARGE])
def test_the_example_in_the_form_is_answered(running, signature):
    """The form's example, and the curl lines, are legal requests; there is none if it would be too large."""
    function = None if signature in (SUM, ECHO) else lambda *arrays: arrays
    client = client_for(running, FakeModel(signature=signature, function=function))
    tags = text_of(client)

    if signature is LARGE:
        assert 'placeholder="left empty: a made-up sample"' in tags
        assert "-d @request.json" in tags
        return
    sent = send_examples(client, tags)
    assert len(sent) > 15
    assert {"/v1/embeddings", "/embed"}.isdisjoint(sent)


def test_examples_of_an_embedding_are_answered(running):
    """A page of a model that embeds texts shows how other APIs' clients call it."""
    client = client_for(running, EmbeddingModel())

    sent = send_examples(client, text_of(client))

    assert len(sent) > 15
    assert {"/v1/embeddings", "/embed"} <= set(sent)


def send_examples(client, tags):
    """Send the requests of the form and the curl lines; return the paths, each answered."""
    names = map(html.unescape, re.findall(r'data-name="(.*?)"', tags))
    found = re.findall(
        r'data-kind="(\w+)" data-name.*?<textarea.*?>(.*?)</textarea>', tags, re.DOTALL
    )
    values = (
        html.unescape(value) if kind == "text" else json.loads(html.unescape(value))
        for kind, value in found
    )
    instance = dict(zip(names, values, strict=True))
    sent = [("/predict", json.dumps({"instances": [instance]}))]
    for line in map(html.unescape, re.findall(r"<pre tabindex=\"0\">(curl .*?)</pre>", tags)):
        url, _, body = line.removeprefix("curl http://localhost:8080").partition(" -d ")
        sent.append((url, body.strip("'")))
    for path, body in sent:
        method = "POST" if body else "GET"
        answer = client.open(path, method=method, data=body.encode())
        assert answer.status_code == 200, (path, answer.get_data())
    return [path for path, _ in sent]


@mark.parametrize("model", [FakeModel(), EmbeddingModel(), ImageModel(signature=WITH_AGE)])
def test_the_code_that_is_shown_runs(running, model, tmp_path, monkeypatch):
    """The Python example of the page, also for Triton's client, runs and gets answers."""
    text = text_of(client_for(running, model))
    code = dict(re.findall(r"<h3>(\w+)</h3>.*?<pre .*?>(.*?)</pre>", text, re.DOTALL))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(plain(1, 2, 3, "JPEG"))
    harness = HttpHarness(model)

    for name in ("Python", "tritonclient"):
        shown = html.unescape(code[name]).replace("localhost:8080", f"127.0.0.1:{harness.port}")
        printed = []
        exec(shown, {"print": printed.append})  # noqa: S102 (it is what is tested)
        assert len(printed) == 1
    harness.close()
    assert code["curl"].startswith("curl ")


def test_images_have_a_form(running):
    """An image is drawn, dropped, pasted or chosen; the numbers beside it have a field of their own."""
    text = text_of(client_for(running, ImageModel(signature=WITH_AGE)))
    tags = Tags(text)

    assert tags.open == []
    kinds = [a["data-kind"] for tag, a in tags.seen if tag == "div" and "data-name" in a]
    assert kinds == ["image", "tensor"]
    assert "curl -F" not in text
    alone = html.unescape(text_of(client_for(running, ImageModel())))
    assert "curl -F image=@photo.jpg http://localhost:8080/predict" in alone


def test_a_golden_is_shown_only_where_the_export_says_so(classifier_bundle):
    """Golden rows can be texts and photographs of people: by default they are not shown."""
    bundle = open_bundle(classifier_bundle)
    manifests = [dataclasses.replace(bundle.manifest, page_sample=shown) for shown in (True, False)]

    def sample(manifest):
        page = Page.__new__(Page)
        page._sample = None
        model = types.SimpleNamespace(
            manifest=manifest, bundle=dataclasses.replace(bundle, manifest=manifest)
        )
        return page._read_sample(model)

    shown, left_out = map(sample, manifests)
    golden = bundle.map(bundle.manifest.goldens[0].file)["input/x"][0]
    assert json.loads(shown) == {"x": golden.tolist()}
    assert left_out == ""


def test_routes_that_are_not_served_are_not_shown(client):
    """Only routes that are served are listed."""
    text = text_of(client)

    assert "/v2/models/fake/infer" in text
    assert "repository" not in text
    assert "sharedmemory" not in text


def test_a_configured_route_is_where_the_form_goes(running):
    """The form posts to the configured route, which is in curl's line as well."""
    client = client_for(running, FakeModel(), predict_route="/v1/e/1:predict", port=9000)

    text = text_of(client)

    assert 'data-route="/v1/e/1:predict"' in text
    assert "curl http://localhost:9000/v1/e/1:predict -d " in text
    description = client.get("/openapi.json").get_json()
    assert "/v1/e/1:predict" in description["paths"]
    assert "/predict" not in description["paths"]


def test_before_and_after_there_is_a_page_too(running, config):
    """While loading, and after a failure, the page says so instead of a model."""
    client = client_of(running, config)

    loading = text_of(client)
    running.service.fail("the device has failed")
    failed = text_of(client)

    assert "There is no model yet" in loading
    assert 'data-state="loading"' in loading
    assert "The server has failed" in failed
    for text in (loading, failed):
        assert Tags(text).open == []
        assert "<form" not in text


def test_the_page_can_be_left_out(running):
    """With the page switched off there is nothing at `/`."""
    client = client_for(running, FakeModel(), page=False)

    assert refused(client.get("/"), 404, "not_found")
    assert client.post("/predict", json={"instances": [[1, 2]]}).status_code == 200


DIMS = st.lists(st.integers(0, 3) | st.just("seq"), max_size=3)


@mark.property
@given(st.sampled_from(sorted(DTYPE_BYTES)), DIMS, st.integers(0, 5), st.integers(0, 4), st.booleans())  # fmt: skip
def test_examples_are_legal(dtype, dims, minimum, shortest, bounded):
    """Whatever the signature, its example fits it: shapes, ranges and axes."""
    whole = "int" in dtype
    spec = TensorSpec(
        name="x",
        dtype=dtype,
        shape=("_", *dims),
        minimum=minimum if whole and bounded else None,
        maximum=minimum + 2 if whole and bounded else None,
    )
    axis = Axis(name="seq", sizes=(4, 8), minimum=shortest)
    any_signature = Signature(inputs=(spec,), outputs=SUM.outputs, axes=(axis,))

    (tensor,) = example_bodies(any_signature)["oip"]["inputs"]

    assert json.loads(json.dumps(tensor["data"])) == tensor["data"]
    head = oip.read_input_header(any_signature, "x", tensor["datatype"], tensor["shape"])
    array = oip.from_values(head, tensor["data"])
    assert Checker(any_signature).check({"x": array}).rows == 1


def test_a_large_example_is_none():
    """An instance of very many numbers is not written out."""
    assert example_instance(LARGE) is None
    assert example_bodies(LARGE) == {}


def histogram_of(*values):
    """Count values."""
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.observe(value)
    return histogram


def test_quantiles_are_estimated_within_a_bucket():
    """A share lies as far into its bucket as it has values of it; none without values."""
    assert quantile([], 0.5) is None
    assert quantile([histogram_of()], 0.5) is None
    assert quantile([histogram_of(*[0.003] * 10)], 0.5) == approx(0.0035)
    assert quantile([histogram_of(*[0.003] * 10)], 1.0) == approx(0.005)
    assert quantile([histogram_of(100.0)], 0.99) == SECONDS[-1]
    both = [histogram_of(*[0.003] * 5), histogram_of(*[0.07] * 5)]
    assert quantile(both, 0.5) == approx(0.005)
    assert quantile(both, 0.9) == approx(0.05 + 0.025 * 0.8)


@mark.property
@given(st.lists(st.floats(0, 9.9), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_in_the_bucket_of_the_value_that_it_stands_for(values, share):
    """The estimate is off by no more than the bucket is wide."""
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    bounds = (0.0, *SECONDS)
    top = next(bound for bound in SECONDS if exact <= bound)

    estimate = quantile([histogram_of(*values)], share)

    assert bounds[bounds.index(top) - 1] - 1e-9 <= estimate <= top + 1e-9
