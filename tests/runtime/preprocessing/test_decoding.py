"""Files of images to pixels: forms, orientations and modes that are read, and what is refused by its header."""

import contextlib
import importlib.metadata

import numpy as np
from PIL import Image
from pytest import mark, param, raises

from runtime import SignatureMismatch
from runtime.errors import MissingLibrary
from runtime.image_stage import ImageStage
from runtime.preprocessing import decoding
from runtime.preprocessing.decoding import library_version, with_pixels
from runtime.preprocessing.resources import UNLIMITED
from tests import image_files
from tests.image_files import picture, plain, png, png_bomb, saved, with_exif

STAGE = ImageStage(
    input="x",
    size=(4, 4),
    resize="exact",
    interpolation="bilinear",
    antialias=True,
    channels="RGB",
    max_pixels=25_000_000,
    max_bytes=1 << 20,
)
GRAY = {"channels": "L"}


def decoded(data, resources=UNLIMITED, **options):
    """Return the pixels of a file."""
    fields = {name: getattr(STAGE, name) for name in STAGE.__slots__} | options
    return with_pixels(data, ImageStage(**fields), "it", resources, np.array)


def refusal(data, **options):
    """Return why a file is refused."""
    with raises(SignatureMismatch) as caught:
        decoded(data, **options)
    return str(caught.value)


@mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "progressive": True, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_each_form_is_read(form, options):
    """JPEG, PNG and WebP become the pixels that were saved, or nearly those."""
    image = picture()
    apart = np.abs(decoded(saved(image, form, **options)).astype(int) - np.asarray(image))

    assert apart.max() <= (12 if form == "JPEG" else 0)


@mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_honoured(form, orientation):
    """An image that was saved turned is turned back, in each form that can say so."""
    turns = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 4))
    turned = image
    if orientation in turns:
        turned = image.transpose(Image.Transpose[turns[orientation]])
    exif = Image.Exif()
    exif[image_files.ORIENTATION] = orientation

    pixels = decoded(saved(turned, form, exif=exif, quality=100))

    assert pixels.shape == (8, 16, 3)
    assert np.abs(pixels.astype(int) - np.asarray(image)).max() <= 16


@mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_is_none_is_ignored(orientation):
    """What is no orientation, and metadata that cannot be read, change nothing."""
    assert decoded(with_exif(orientation)).shape == (16, 24, 3)
    assert decoded(saved(picture(), "JPEG", exif=b"Exif\0\0broken")).shape == (16, 24, 3)


@mark.parametrize(
    "image",
    [
        param(picture(mode="L"), id="L"),
        param(picture(mode="LA"), id="LA"),
        param(picture(mode="RGBA"), id="RGBA"),
        param(picture().quantize(16), id="palette"),
        param(picture(mode="1"), id="1"),
    ],
)
@mark.parametrize("channels", ["RGB", "L"])
def test_each_mode_becomes_the_channels_of_the_input(image, channels):
    """Transparency is dropped, palettes are looked up, and gray is gray in each channel."""
    expected = np.asarray(image.convert("RGB").convert(channels))

    assert np.array_equal(decoded(saved(image), channels=channels), expected)


@mark.parametrize("channels", ["RGB", "L"])
def test_cmyk_becomes_the_channels_of_the_input(channels):
    """A JPEG of a printer's colours is read as those of a screen."""
    pixels = decoded(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), channels=channels)

    expected = (254, 0, 0) if channels == "RGB" else 76
    assert np.abs(pixels[0, 0].astype(int) - expected).max() <= 3


@mark.parametrize("channels", ["RGB", "L"])
def test_sixteen_bits_are_scaled(channels):
    """Of 16 bits a pixel the high ones count; Pillow by itself would cut them off at 255."""
    levels = np.array([[0, 255, 256, 32_768, 65_535]], np.uint16)

    pixels = decoded(saved(Image.fromarray(levels)), channels=channels)

    assert pixels.reshape(5, -1)[:, 0].tolist() == [0, 0, 1, 128, 255]


def test_a_jpeg_with_more_pictures_is_its_first():
    """What cameras append to a JPEG, such as a map of its brightness, is no animation."""
    image = picture()
    data = saved(image, "MPO", save_all=True, append_images=[picture(seed=1)])

    assert decoded(data).shape == (16, 24, 3)


@mark.parametrize(
    ("data", "name"),
    [
        param(b"", "no bytes", id="empty"),
        param(saved(picture(), "GIF"), "a GIF", id="GIF"),
        param(saved(picture(), "BMP"), "a BMP", id="BMP"),
        param(saved(picture(), "TIFF"), "a TIFF", id="TIFF"),
        param(saved(picture(), "ICO"), "an ICO", id="ICO"),
        param(saved(picture(), "JPEG2000"), "a JPEG 2000", id="JPEG-2000"),
        param(saved(picture(), "PDF"), "a PDF", id="PDF"),
        param(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC", id="photograph-of-a-phone"),
        param(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", "an AVIF", id="AVIF"),
        param(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "a video", id="MP4"),
        param(b"<svg/>", "an SVG", id="SVG"),
        param(b"<?xml version='1.0'?><svg/>", "XML", id="XML"),
        param(b"\n<!DOCTYPE html><title>404</title>", "an HTML page", id="page"),
        param(b"http://a/b.png", "the text of a URL; send the bytes of the file", id="URL"),
        param(
            b"data:image/png;base64,AA", "the text of a URL; send the bytes of the file", id="data"
        ),
        param(b"photos/cat.png\n", "a text; send the bytes of the file", id="path"),
    ],
)
def test_a_file_of_another_form_is_named(data, name):
    """What it is follows from its first bytes, whatever it is called: names of files lie."""
    assert refusal(data) == f"it: expected an image as JPEG, PNG or WebP, got {name}"


@mark.parametrize(
    ("data", "message"),
    [
        param(b"\x07noise", "an image as JPEG, PNG or WebP, got other bytes", id="noise"),
        param(saved(picture(), "JPEG")[:-200], "a whole image, got a damaged one", id="cut-JPEG"),
        param(saved(picture())[:-60], "a whole image, got a damaged one", id="cut-PNG"),
        param(saved(picture(), "WEBP")[:-9], "a whole image, got a damaged one", id="cut-WebP"),
        param(png(4, 4), "a whole image, got a damaged one", id="no-pixels"),
        param(image_files.animation("PNG"), "one picture, got an animation", id="moving-PNG"),
        param(image_files.animation("WEBP"), "one picture, got an animation", id="moving-WebP"),
        param(png(5001, 5000), "at most 25000000 pixels, got 5001x5000", id="pixels"),
        param(png(70_000, 2), "sides of at most 65535 pixels, got 70000x2", id="sides"),
        param(
            png(50_000, 50_000),
            "an image of fewer pixels, got hundreds of millions",
            id="far-too-many-pixels",
        ),
        param(
            image_files.lying_webp(16_000, 16_000),
            "an image of fewer pixels, got hundreds of millions",
            id="lying-WebP",
        ),
        param(image_files.scan_bomb(150), "at most 100 scans, got 159", id="scans"),
        param(bytes(1 + (1 << 20)), "at most 1048576 bytes, got 1048577", id="bytes"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(data, message):
    """A file that is no image, or of an unsupported format, is refused with what was expected."""
    assert refusal(data) == f"it: expected {message}"


def test_a_bomb_is_refused_before_it_is_decoded():
    """A PNG of a few kilobytes whose header declares too many pixels is refused without decoding."""
    bomb = png_bomb(1200, 1000)
    assert len(bomb) < 5000

    class Counted:
        """Resources that none may be taken of."""

        def memory(self, size):
            """Fail: nothing is to be decoded."""
            raise AssertionError(size)

        def check(self):
            """Go on."""

    with raises(SignatureMismatch, match=r"^it: expected at most 1000000 pixels, got 1200x1000$"):
        decoded(bomb, Counted(), max_pixels=1_000_000)


def test_memory_is_asked_for_before_decoding():
    """What an image takes follows from its header, and is given back afterwards."""
    taken = []

    class Counted:
        """Resources that are written down."""

        @contextlib.contextmanager
        def memory(self, size):
            """Write down what is taken, and that it was given back."""
            taken.append(size)
            try:
                yield
            finally:
                taken.append(-size)

        def check(self):
            """Go on."""

    decoded(plain(1, 2, 3, size=(30, 20)), Counted())
    with raises(SignatureMismatch):
        decoded(saved(picture())[:-60], Counted())

    assert taken[:2] == [16 * 600 + 4 * 120, -(16 * 600 + 4 * 120)]
    assert sum(taken) == 0


@mark.parametrize("channels", ["RGB", "L"])
def test_metadata_is_not_held_against_an_image(channels):
    """Long texts, many chunks and what stands behind the end of an image are passed over."""
    behind = saved(picture(), "JPEG") + b"PK\x03\x04 more"

    for data in (image_files.many_texts(3), with_exif(1, padding=60_000), behind):
        assert decoded(data, channels=channels).shape[:2] == (16, 24)


def test_no_memory_is_no_fault_of_the_file(monkeypatch):
    """Where memory is short the error is that, and not that an image is damaged."""

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(decoding.pillow(), "open", fail)

    with raises(MemoryError):
        decoded(saved(picture()))


@mark.parametrize(("found", "got"), [("12.0.0", "12.0.0"), ("9", "9"), (None, "none installed")])
def test_the_library_has_to_be_there(monkeypatch, found, got):
    """Without Pillow, or with one that is too old, one line names what to install."""

    def version(_):
        if found is None:
            raise importlib.metadata.PackageNotFoundError
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)

    with raises(MissingLibrary) as caught:
        library_version()
    assert str(caught.value) == (
        f"image inputs: expected the package pillow 12.1 or later, got {got}; "
        "pip install 'hloserve[image]'"
    )
