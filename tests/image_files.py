"""Image files for the tests: valid ones of each form, and hostile ones."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

ORIENTATION = 0x0112


def picture(width=24, height=16, mode="RGB", seed=0):
    """Return a Pillow image of soft noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def saved(image, form="PNG", **options):
    """Return an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def plain(red, green, blue, form="PNG", size=(20, 10)):
    """Return a file of one colour."""
    return saved(Image.new("RGB", size, (red, green, blue)), form)


def chunk(kind, data):
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, depth=8, colour=2):
    """Return a PNG of a header and chunks, whatever they hold."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")])


def png_bomb(width, height):
    """Return a small PNG of very many black pixels."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    parts = [deflate.compress(row) for _ in range(height)]
    return png(width, height, chunk(b"IDAT", b"".join([*parts, deflate.flush()])))


def lying_png(width, height):
    """Return a PNG whose header promises more pixels than it has."""
    return png(width, height, chunk(b"IDAT", zlib.compress(bytes(64))))


def lying_jpeg(width, height, seed=0):
    """Return a JPEG whose header was changed to another size."""
    data = saved(picture(seed=seed), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def lying_webp(width, height, seed=0):
    """Return a WebP whose header was changed to another size."""
    data = saved(picture(seed=seed), "WEBP", lossless=True)
    bits = int.from_bytes(data[21:25], "little") >> 28 << 28
    bits |= (width - 1) & 0x3FFF | ((height - 1) & 0x3FFF) << 14
    return data[:21] + bits.to_bytes(4, "little") + data[25:]


def scan_bomb(scans):
    """Return a progressive JPEG that goes over its pixels again and again."""
    data = saved(picture(640, 640), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * scans + data[-2:]


def with_exif(orientation=6, padding=0):
    """Return a JPEG with an orientation, and as many bytes of other metadata."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    if padding:
        exif[0x010E] = "x" * padding
    return saved(picture(), "JPEG", exif=exif)


def animation(form):
    """Return two pictures in one file."""
    return saved(
        picture(), form, save_all=True, append_images=[picture(seed=1)], duration=100, loop=0
    )


def many_texts(count):
    """Return a PNG with texts that are large when they are inflated."""
    info = PngImagePlugin.PngInfo()
    for i in range(count):
        info.add_text(f"k{i}", "x" * 900_000, zip=True)
    return saved(picture(), "PNG", pnginfo=info)


def _cut(data, rng):
    return data[: rng.randrange(len(data) // 8, len(data) - 4)]


def _flipped(data, rng):
    out = bytearray(data)
    for _ in range(rng.randint(1, 30)):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def _form(rng):
    return rng.choice(["JPEG", "PNG", "WEBP"])


def _some(rng, mode="RGB"):
    return picture(rng.randint(1, 90), rng.randint(1, 90), mode, seed=rng.randrange(2**32))


# Kinds of hostile files, each drawn by a seeded random.Random.
STRANGE = {
    "noise": lambda rng: rng.randbytes(rng.randint(0, 3000)),
    "noise behind a magic": lambda rng: (
        rng.choice([b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\0\0\0WEBP"])
        + rng.randbytes(rng.randint(0, 2000))
    ),
    "cut off": lambda rng: _cut(saved(_some(rng), _form(rng)), rng),
    "flipped bytes": lambda rng: _flipped(saved(_some(rng), _form(rng)), rng),
    "bombs of pixels": lambda rng: (
        png_bomb(rng.randint(5001, 6000), rng.randint(5001, 5200))
        if rng.random() < 0.01
        else lying_png(rng.randint(5001, 2**31 - 1), rng.randint(5001, 2**31 - 1))
    ),
    "lying headers": lambda rng: rng.choice([lying_png, lying_jpeg, lying_webp])(
        rng.randint(100, 4000), rng.randint(100, 4000)
    ),
    "bombs of scans": lambda rng: (
        scan_bomb(rng.randint(120, 200))
        if rng.random() < 0.05
        else b"\xff\xd8" + b"\xff\xda" * rng.randint(101, 5000)
    ),
    "CMYK": lambda rng: saved(_some(rng, "CMYK"), "JPEG", quality=rng.randint(1, 95)),
    "gray": lambda rng: saved(_some(rng, rng.choice(["L", "1", "LA"])), "PNG"),
    "16 bits": lambda rng: saved(
        Image.fromarray(
            np.random.default_rng(rng.randrange(2**32)).integers(
                0, 65536, (rng.randint(1, 40), rng.randint(1, 40)), dtype=np.uint16
            )
        ),
        "PNG",
    ),
    "palettes": lambda rng: saved(
        _some(rng).quantize(rng.randint(2, 256)),
        "PNG",
        **({"transparency": bytes(range(64))} if rng.random() < 0.5 else {"transparency": 1}),
    ),
    "huge metadata": lambda rng: (
        with_exif(rng.randint(0, 255), rng.randint(0, 60_000))
        if rng.random() < 0.5
        else many_texts(rng.randint(1, 80))
    ),
    "bad metadata": lambda rng: saved(
        _some(rng), rng.choice(["JPEG", "PNG", "WEBP"]), exif=b"Exif\0\0" + rng.randbytes(300)
    ),
    "polyglots": lambda rng: (
        saved(_some(rng), _form(rng))
        + rng.choice([b"PK\x03\x04", b"<script>alert(1)</script>", b"%PDF-1.7", b"\xff\xd8"])
        + rng.randbytes(rng.randint(0, 500))
    ),
    "other forms": lambda rng: saved(_some(rng), rng.choice(["GIF", "BMP", "TIFF", "ICO", "PPM"])),
    "SVG and URLs": lambda rng: (
        rng.choice(
            [
                b'<svg xmlns="http://www.w3.org/2000/svg"/>',
                b"http://127.0.0.1/x",
                b"file:///etc/passwd",
            ]
        )
        + b" " * rng.randint(0, 90)
    ),
    "animations": lambda rng: animation(rng.choice(["PNG", "WEBP", "GIF"])),
    "odd shapes": lambda rng: saved(
        Image.new("L", rng.choice([(1, rng.randint(1, 9000)), (rng.randint(1, 9000), 1)])), "PNG"
    ),
    "many chunks": lambda rng: png(
        4, 4, *[chunk(b"tEXt", b"a\0b")] * rng.randint(100, 3000), chunk(b"IDAT", b"")
    ),
}


def strange(kind, count, seed=0):
    """Yield files of a kind."""
    rng = random.Random(f"{kind}-{seed}")
    for _ in range(count):
        yield STRANGE[kind](rng)
