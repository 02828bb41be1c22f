"""The page as people use it: in a real browser, with a keyboard, in the dark and on a phone."""

import io
import json
import re

from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect
from pytest import fixture, mark

import export
from runtime.entries import OutputFormat
from tests.e2e.browser import browsing, opened
from tests.image_files import plain
from tests.server.fakes import FakeModel, signature
from tests.server.http_harness import HttpHarness
from tests.server.image_model import ImageModel
from tests.server.text_model import EmbeddingModel, TextModel
from tests.serving import serving

pytestmark = mark.e2e

LARGE = signature(["x:float32[_, 224, 224, 3]"], ["y:float32[_]"])
FORM = OutputFormat(
    kind="classification", output="mean", scores="probabilities", labels=("red", "green", "blue")
)


def colours(image):
    """Return the share of each channel in an image."""
    means = image.mean(axis=(1, 2)) + 1e-6
    return ((means / means.sum(axis=1, keepdims=True)).astype("float32"),)


def images():
    """Return a model that classifies images by their channels."""
    model = ImageModel(output_format=FORM)
    model.function = colours
    return model


MODELS = {
    "images": images,
    "texts": TextModel,
    "embeddings": EmbeddingModel,
    "tensors": FakeModel,
    "large": lambda: FakeModel(signature=LARGE, function=lambda x: (x.sum(axis=(1, 2, 3)),)),
}


@fixture(scope="module")
def served():
    """Servers of each kind of model, by their names."""
    started = {name: HttpHarness(make()) for name, make in MODELS.items()}
    yield started
    for one in started.values():
        one.close()


def refused(line):
    """Whether a line of the browser's console is an error of the page, and not an error response of the server."""
    return line.type == "error" and "Failed to load resource" not in line.text


@fixture(scope="module")
def browser():
    """The machine's own Chromium."""
    with browsing() as started:
        yield started


@fixture
def page(browser):
    """A page of a browser; what goes wrong in its script fails the test."""
    with opened(browser) as shown:
        errors = []
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.on("console", lambda line: errors.append(line.text) if refused(line) else None)
        yield shown
        assert errors == []


def visit(page, served, name):
    """Open the page of a model."""
    page.goto(f"http://127.0.0.1:{served[name].port}/")


def ask(page):
    """Press the button."""
    page.get_by_role("button", name="Predict").click()


def test_an_image_is_chosen(page, served, tmp_path):
    """A file that is chosen is shown, and answered by a label and a bar for each class."""
    (tmp_path / "red.png").write_bytes(plain(250, 10, 20))
    visit(page, served, "images")

    page.get_by_label("choose one").set_input_files(tmp_path / "red.png")
    expect(page.get_by_text("red.png, ")).to_be_visible()
    ask(page)

    expect(page.locator("#answer .label")).to_have_text("red")
    expect(page.locator("#answer .bars tr")).to_have_count(3)
    expect(page.locator("#answer .bars tr").first).to_contain_text("89.3 %")
    expect(page.locator("#answer")).to_contain_text("Bucket 1: preprocess ")


@mark.parametrize("event", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(page, served, event):
    """A file that is dropped or pasted is sent like one that is chosen."""
    visit(page, served, "images")
    page.evaluate(
        """([event, bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "blue.png", { type: "image/png" }));
          const target = event === "drop" ? document.querySelector("canvas") : document;
          const made = event === "drop"
            ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
          target.dispatchEvent(made);
        }""",
        [event, list(plain(1, 2, 250))],
    )
    ask(page)

    expect(page.locator("#answer .label")).to_have_text("blue")


def test_an_image_is_drawn(page, served):
    """What is drawn with the pointer is sent as an image, and cleared on request."""
    visit(page, served, "images")
    ask(page)
    expect(page.locator("#answer .error")).to_have_text(
        "expected an image: draw, drop, paste or choose one"
    )

    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 200, steps=5)
    page.mouse.up()
    with page.expect_request("**/predict") as sent:
        ask(page)
    [instance] = json.loads(sent.value.post_data)["instances"]
    drawn = page.evaluate("data => atob(data).length", instance["image"]["b64"])
    expect(page.locator("#answer .bars tr")).to_have_count(3)
    page.get_by_role("button", name="Clear").click()
    ask(page)

    assert drawn > 100
    expect(page.locator("#answer .error")).to_be_visible()


def test_a_text_is_asked_by_the_keyboard(page, served):
    """Ctrl+Enter sends the form from any field; for a bad text the page shows the server's message."""
    visit(page, served, "texts")
    page.get_by_label("text").fill("the cat sat")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answer pre").first).to_have_text("20")

    page.get_by_label("text").fill("cat " * 9)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answer .error")).to_have_text(
        "instances[0]: input 'text': expected at most 8 tokens, got 11"
    )


def test_embeddings_are_shown_by_their_similarity(page, served):
    """Several texts, one a line, are compared with the first one."""
    visit(page, served, "embeddings")
    page.get_by_label("text").fill("the cat\nthe cat\na dog ran away")
    ask(page)

    rows = page.locator("#answer .bars tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("1.000")


@mark.parametrize("name", ["tensors", "large"])
def test_tensors_are_json_or_made_up(page, served, name):
    """Numbers are written as JSON; a sample is made up, however many numbers a row has."""
    visit(page, served, name)
    page.get_by_role("button", name="Made-up sample").click()
    ask(page)
    expect(page.locator("#answer pre").first).not_to_be_empty()
    expect(page.locator("#answer .error")).to_have_count(0)

    page.get_by_label("x:").fill("[1, null]")
    ask(page)
    expect(page.locator("#answer .error")).to_contain_text("instances[0]")


def test_the_bundles_sample_is_asked_about(page, tmp_path):
    """Where the export allowed it, the first golden image can be tried."""
    export.export_model(
        lambda _, image: image.mean(axis=(1, 2)),
        {},
        inputs=["image:float32[_,4,6,3]"],
        buckets=(1,),
        platforms="cpu",
        preprocess=[export.Image("image", (4, 6))],
        golden={"image": [plain(9, 8, 7)]},
        page_sample=True,
        out=tmp_path / "bundle",
    )
    with serving("--bundle", str(tmp_path / "bundle")) as server:
        page.goto(f"{server.url}/")
        page.get_by_role("button", name="Sample of the bundle").click()
        expect(page.get_by_text("sample of the bundle, ")).to_be_visible()
        ask(page)
        expect(page.locator("#answer pre").first).to_have_text(re.compile(r"\[\s*9,\s*8,\s*7\s*\]"))
        page.goto("about:blank")


def test_what_goes_on_is_drawn(page, served):
    """Charts follow the requests, by the server's counters."""
    visit(page, served, "tensors")
    expect(page.locator("#charts figure")).to_have_count(4)
    ask(page)

    expect(page.locator("#charts figure").last.locator("svg")).to_have_attribute(
        "aria-label", "Buckets: b1: 1", timeout=30_000
    )


def test_code_is_copied(browser, served):
    """Each way to ask has a button that copies it, with the address of this very server."""
    with opened(browser, permissions=["clipboard-read", "clipboard-write"]) as page:
        visit(page, served, "images")
        page.get_by_role("button", name="Copy the code for curl").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        copied = page.evaluate("navigator.clipboard.readText()")

    assert copied == f"curl -F image=@photo.jpg http://127.0.0.1:{served['images'].port}/predict"


@mark.parametrize("scheme", ["light", "dark"])
@mark.parametrize("width", [1280, 360])
def test_nothing_keeps_people_out(browser, served, width, scheme):
    """Axe finds no violation on any model's page, with an answer on it; and none is wider than a phone."""
    size = {"width": width, "height": 800}
    for name in MODELS:
        with opened(browser, color_scheme=scheme, viewport=size) as page:
            visit(page, served, name)
            page.get_by_role("button", name="Made-up sample").click()
            ask(page)
            expect(page.locator("#answer details")).to_be_visible()
            page.locator("#ask-title ~ details summary").click()
            found = Axe().run(page).response["violations"]
            wide = page.evaluate("document.documentElement.scrollWidth")

        assert [(name, one["id"], one["nodes"][0]["html"]) for one in found] == []
        assert wide <= width


def test_every_control_is_reached_by_the_keyboard(page, served):
    """Tab goes through the form in its order, to the button that asks."""
    visit(page, served, "images")
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.textContent || document.activeElement.type")
        )

    assert reached[:5] == ["file", "Clear", "Swap black and white", "Predict", "Made-up sample"]


def test_the_page_can_be_looked_at(page, served):
    """A picture of it is a picture, which scripts make for the documentation."""
    visit(page, served, "images")

    assert Image.open(io.BytesIO(page.screenshot())).size == (1280, 720)
