"""What files are, by their first bytes: images that can be read, and what is sent in place of them.

Names of files lie: a phone's photograph called `.jpg` may be HEIC, and what was downloaded a page that
says why not. Nothing is decoded here.
"""

import re

# Of what an ISO base media file says that it is (ISO/IEC 14496-12), the images.
_HEIF = re.compile(rb"heic|heix|heim|heis|hevc|hevx|mif1|msf1")
_AVIF = re.compile(rb"avif|avis")
_FIRST_BYTES = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF-", "a PDF"),
    (b"\0\0\1\0", "an ICO"),
    (b"8BPS", "a PSD"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\3\4", "a ZIP"),
)
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(svg|\?xml|!doctype html|html)\b", re.IGNORECASE)
_URL = re.compile(rb"(?:https?|gs|s3|file|data):", re.IGNORECASE)
# As many characters as a path has, and nothing that is binary.
_SHORT_TEXT = re.compile(rb"[\x20-\x7e]{1,256}\s*")


_READ = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"\x89PNG\r\n"), "image/png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)


def media_type(data: bytes) -> str | None:
    """Return the media type of an image that can be read, as far as its first bytes show; else None."""
    return next((media for first, media in _READ if first.match(data)), None)


def name_form(data: bytes) -> str:
    """Return what a file is called in "got …", as far as its first bytes show.

    Args:
      data: a file that is no JPEG, PNG or WebP.
    """
    named = next((name for first, name in _FIRST_BYTES if data.startswith(first)), None)
    if named is not None or not data:
        return named or "no bytes"
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return "a HEIC" if _HEIF.match(brand) else "an AVIF" if _AVIF.match(brand) else "a video"
    if (markup := _MARKUP.match(data)) is not None:
        kind = markup[1].lower()
        return "an SVG" if kind == b"svg" else "XML" if kind == b"?xml" else "an HTML page"
    if _URL.match(data) or _SHORT_TEXT.fullmatch(data):
        what = "the text of a URL" if _URL.match(data) else "a text"
        return f"{what}; send the bytes of the file"
    return "other bytes"
