"""Check the links of a built site: each leads to a file of it, and each anchor to an element.

    python -m scripts.links build/site

The builder checks links between Markdown pages alone; this sees images, downloads and the navigation.
"""

import sys
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import override


class Page(HTMLParser):
    """The links and the anchors of a page.

    Attributes:
      links: values of `href` and `src`, in their order.
      anchors: values of `id`.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"href", "src"} and value:
                self.links.append(value)
            if name == "id" and value:
                self.anchors.add(value)


def dead_links(site: Path) -> Iterator[str]:
    """Return a line for each link that leads nowhere; links to other sites are not followed."""
    # The page of missing pages has absolute links, since it is shown at any address.
    files = [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]
    pages = {path: Page(path.read_text()) for path in files}
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            if reason := _why_dead(site, path, link, pages):
                yield f"{path.relative_to(site)}: {link}: {reason}"


def _why_dead(site: Path, path: Path, link: str, pages: dict[Path, Page]) -> str:
    parts = urllib.parse.urlsplit(link)
    if parts.scheme or parts.netloc:
        return ""
    target = Path(path.parent, urllib.parse.unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_relative_to(site) or not target.is_file():
        return "no such file"
    anchor = urllib.parse.unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return "no such anchor"
    return ""


def main() -> int:
    """Print the links that lead nowhere; 1 if there are any."""
    site = Path(sys.argv[1]).resolve()
    found = list(dead_links(site))
    print("\n".join(f"error: {line}" for line in found), file=sys.stderr, end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
