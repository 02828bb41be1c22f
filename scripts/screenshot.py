"""Draw a digit on the page of a running server, ask, and save a picture of it.

    ./build.sh run &
    python -m scripts.screenshot --url http://localhost:8080/ --out docs/images/page.png

Needs Chromium on the machine.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 880, "height": 1000}
# A two, in shares of the canvas.
STROKE = [
    *[(0.27, 0.32), (0.30, 0.20), (0.40, 0.12), (0.52, 0.10), (0.64, 0.14), (0.72, 0.24)],
    *[(0.72, 0.36), (0.64, 0.50), (0.50, 0.66), (0.36, 0.80), (0.28, 0.88)],
    *[(0.45, 0.88), (0.60, 0.88), (0.76, 0.88)],
]


def draw(page: Page) -> None:
    """Draw the stroke with the pointer, and ask."""
    box = page.locator("canvas").bounding_box()
    if box is None:
        sys.exit("error: page: expected a canvas, got none")
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in STROKE]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Predict").click()
    page.locator("#answer .label").wait_for()


def main() -> int:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--url", default="http://localhost:8080/")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        sys.exit("error: expected Chromium, got none; apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = started.new_page(viewport=SIZE, device_scale_factor=1.25)
        page.goto(arguments.url)
        draw(page)
        page.mouse.move(0, 0)
        page.evaluate("scrollTo(0, 0)")
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        answer = page.locator("#answer").bounding_box() or {"y": 0, "height": SIZE["height"]}
        bottom = answer["y"] + answer["height"] + 20
        page.screenshot(
            path=arguments.out, clip={"x": 0, "y": 0, "width": SIZE["width"], "height": bottom}
        )
        print(f"{arguments.out}: {page.locator('#answer .label').inner_text()}")
        started.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
