"""Image inputs at export: what is declared, what programs do with pixels, and goldens that begin at files."""

import base64
import dataclasses
import io
import json

import jax.numpy as jnp
import numpy as np
from PIL import Image as Pillow
from pytest import fixture, mark, param, raises

from export import ExportError, ExportSpec, Image, TensorSpec, Text, export_model
from export.cli import preprocess_changes
from export.image_flags import declared_images
from export.parser import parser
from export.raw_inputs import open_raw_inputs
from export.text_flags import declared_texts
from runtime import SignatureMismatch, load
from runtime.bundle import open_bundle
from runtime.preprocessing.decoding import library_version
from runtime.preprocessing.raw_goldens import check_raw_goldens, read_raw
from tests.altered_bundles import altered
from tests.image_files import picture, plain, saved

FLOATS = "image:float32[_,6,8,3]"
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)


def channel_means(params, image):
    """Return the mean of each channel, scaled."""
    return image.mean(axis=(1, 2)) * params["scale"]


PARAMS = {"scale": np.ones(3, np.float32)}


def spec_of(image=Image("image", (6, 8)), inputs=(FLOATS,), **options):  # noqa: B008 (frozen)
    """Return a spec with one image, checked."""
    return ExportSpec(
        model=options.pop("model", channel_means),
        params=PARAMS,
        inputs=inputs,
        buckets=(1, 2),
        platforms="cpu",
        preprocess=[image],
        **options,
    ).checked()


def opened(*arguments, **options):
    """Return the raw inputs of a spec, and the resulting spec."""
    changed, raw = open_raw_inputs(spec_of(*arguments, **options), lambda _: None)
    return raw, changed


def refusal(*arguments, **options):
    """Return why the images of a spec are refused."""
    with raises(ExportError) as caught:
        opened(*arguments, **options)
    return str(caught.value)


def test_programs_take_pixels():
    """A model of floats becomes programs of bytes, which the stage makes of files."""
    raw, changed = opened(Image("image", (6, 8), mean=MEAN, std=STD))

    assert [str(spec) for spec in changed.inputs] == ["uint8[_, 6, 8, 3]"]
    [stage] = raw.stages
    assert (stage.size, stage.resize, stage.interpolation) == ((6, 8), "exact", "bilinear")
    assert (stage.antialias, stage.channels, stage.max_pixels) == (True, "RGB", 25_000_000)
    assert raw.libraries == {"pillow": library_version()}
    assert "programs compute (pixel - [120, 110, 100]) / [60, 50, 40]" in raw.notes[0]
    assert raw.notes[1].startswith("the bundle holds 8 golden images drawn from the seed, for all ")


@mark.parametrize(
    ("declared", "image", "expected"),
    [
        (FLOATS, Image("image", (6, 8)), lambda x: x),
        (FLOATS, Image("image", (6, 8), mean=MEAN, std=STD), lambda x: (x - MEAN) / STD),
        (FLOATS, Image("image", (6, 8), mean=127.5, std=127.5), lambda x: x / 127.5 - 1),
        (
            "image:float32[_,3,6,8]",
            Image("image", (6, 8), mean=MEAN, std=STD, layout="CHW"),
            lambda x: np.moveaxis((x - MEAN) / STD, -1, 1),
        ),
        ("image:uint8[_,6,8,3]", Image("image", (6, 8)), lambda x: x),
        ("image:uint8[_,3,6,8]", Image("image", (6, 8), layout="CHW"), lambda x: np.moveaxis(x, -1, 1)),
        ("image:bfloat16[_,6,8,3]", Image("image", (6, 8), std=255), lambda x: x / 255),
    ],
)  # fmt: skip
def test_what_the_model_gets(declared, image, expected):
    """Pixels are normalised in floating point, and laid out, before the model sees them."""
    raw, _ = opened(image, (declared,))
    pixels = np.random.default_rng(1).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    seen = []

    raw.before(lambda _, inputs: seen.append(inputs["image"]))({}, {"image": pixels})

    [got] = seen
    dtype = declared.partition(":")[2].partition("[")[0]
    assert got.dtype.name == dtype
    wide = np.asarray(jnp.asarray(got, jnp.float32))
    tolerance = 0.01 if dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(wide, expected(pixels.astype(np.float64)), atol=tolerance)


@mark.parametrize(
    "declared", ["image:float32[_,6,8]", "image:uint8[_,6,8]", "image:float32[_,6,8,1]"]
)
def test_gray_needs_no_axis_of_channels(declared):
    """One channel can be an axis of one, or none."""
    raw, changed = opened(Image("image", (6, 8), channels="L"), (declared,))

    shape = changed.inputs[0].shape[1:]
    assert raw.goldens[0].inputs["image"].shape == (8, *shape)
    assert changed.inputs[0].dtype == "uint8"


@mark.parametrize(
    ("image", "message"),
    [
        (Image("image", (6, 8), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
         ("expected mean and std in units of the pixel, 0 to 255, got 0.485; if they are of pixels from 0 "
         "to 1, pass mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)")),
        (Image("image", (6, 8), mean=0.5, std=0.5),
         ("expected mean and std in units of the pixel, 0 to 255, got 0.5; if they are of pixels from 0 "
         "to 1, pass mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5)")),
        (Image("image", (6, 8), mean=300), "expected mean of 0 to 255, got (300.0, 300.0, 300.0)"),
        (Image("image", (6, 8), std=0), "expected std above 0, got (0.0, 0.0, 0.0)"),
        (Image("image", (6, 8), std=(1, 2)), "expected std a number, or 3, got (1, 2)"),
        (Image("image", (6, 8), mean="120"), "expected mean a number, or 3, got '120'"),
        (Image("image", (6, 8, 3)), "expected size as height and width, got (6, 8, 3)"),
        (Image("image", 0), "expected size of 1 to 65535, got 0"),
        (Image("image", (6, 8), resize="short"),
         "expected resize 'exact', 'shortest' or 'letterbox', got 'short'; did you mean 'shortest'?"),
        (Image("image", (6, 8), crop="random"), "expected crop 'center', got 'random'"),
        (Image("image", (6, 8), interpolation="area"),
         "expected interpolation 'nearest', 'bilinear', 'bicubic' or 'lanczos3', got 'area'"),
        (Image("image", (6, 8), channels="BGR"), "expected channels 'RGB' or 'L', got 'BGR'"),
        (Image("image", (6, 8), layout="NCHW"), "expected layout 'HWC' or 'CHW', got 'NCHW'; did you mean 'CHW'?"),
        (Image("image", (6, 8), antialias="no"), "expected antialias True or False, got 'no'"),
        (Image("image", (6, 8), resize_to=9),
         "expected resize_to with resize 'shortest' alone, got 'exact'"),
        (Image("image", (6, 8), resize="shortest", resize_to=7), "expected resize_to of 8 to 65535, got 7"),
        (Image("image", (6, 8), max_pixels=0), "expected max_pixels 1 or more, got 0"),
    ],
)  # fmt: skip
def test_what_an_image_cannot_be_is_refused(image, message):
    """Each field's error says what it takes; for means of pixels from 0 to 1 it suggests them in units of the pixel."""
    assert refusal(image) == f"image 'image': {message}"


@mark.parametrize(
    ("inputs", "image", "message"),
    [
        ((FLOATS,), Image("picture", (6, 8)),
         "image 'picture': expected the name of an input, image, got 'picture'"),
        ((FLOATS,), Image("image", 8),
         "image 'image': expected float32[_, 8, 8, 3] or uint8[_, 8, 8, 3], got float32[_, 6, 8, 3]"),
        (("image:int32[_,6,8,3]",), Image("image", (6, 8)),
         "image 'image': expected float32[_, 6, 8, 3] or uint8[_, 6, 8, 3], got int32[_, 6, 8, 3]"),
        (("image:uint8[_,6,8,3]",), Image("image", (6, 8), std=255),
         ("image 'image': expected a floating input for mean and std, got uint8[_, 6, 8, 3]; declare it as "
         "float32, or leave them to the model")),
        ((TensorSpec(name="image", dtype="uint8", shape=("_", 6, 8, 3), maximum=16),),
         Image("image", (6, 8)), "image 'image': expected values of 0 to 255, got None to 16"),
        (("a:float32[_,6,8,3]", "b:float32[_,6,8,3]"), Image("a-b", 3),
         "image 'a-b': expected a name such as 'image'"),
    ],
)  # fmt: skip
def test_an_image_has_to_fit_its_input(inputs, image, message):
    """What the model has at that name is compared with the size, the channels and the layout."""
    assert refusal(image, inputs) == message


def test_seeded_images_are_the_same_for_a_seed():
    """Files of several forms are drawn from the seed, the same ones each time."""
    one, same, other = (opened(seed=seed)[0].goldens[0].raw for seed in (3, 3, 4))

    assert one == same
    assert one != other
    heads = {row["image"][:2] for row in one}
    assert heads == {b"\xff\xd8", b"\x89P", b"RI"}


def b64(data):
    """Return a file in JSON."""
    return {"b64": base64.b64encode(data).decode()}


@mark.parametrize("form", ["paths", "b64", "bare", "mapping"])
def test_goldens_are_files(tmp_path, form):
    """Golden images are given as paths beside the lines, as base64, or in Python as either."""
    files = [plain(250, 0, 0), plain(0, 250, 0)]
    for i, data in enumerate(files):
        (tmp_path / f"{i}.png").write_bytes(data)
    lines = {
        "paths": [{"image": "0.png"}, {"image": "1.png"}],
        "b64": [{"image": b64(data)} for data in files],
        "bare": [b64(files[0]), "1.png"],
    }
    golden = tmp_path / "golden.jsonl"
    if form == "mapping":
        golden = {"image": [files[0], tmp_path / "1.png"]}
    else:
        golden.write_text("".join(json.dumps(line) + "\n" for line in lines[form]))

    raw, changed = opened(golden=golden)

    assert changed.golden is None
    assert [row["image"] for row in raw.goldens[0].raw] == files
    assert raw.goldens[0].inputs["image"][:, 0, 0].tolist() == [[250, 0, 0], [0, 250, 0]]
    assert raw.notes[-1].startswith("the bundle holds 2 golden images of ")


def test_golden_pixels_are_tensors():
    """Arrays under an image's name are pixels, beside images that are drawn."""
    pixels = np.zeros((2, 6, 8, 3), np.uint8)

    raw, changed = opened(golden={"image": pixels})

    assert changed.golden["image"] is pixels
    assert len(raw.goldens[0].raw) == 8


@mark.parametrize(
    ("line", "message"),
    [
        ('"none.png"', ", line 1: expected an image, got No such file or directory at none.png"),
        ('{"image": 5}', ', line 1: expected the path of an image or {"b64": …}, got a number'),
        ('{"image": {"b64": "?"}}', ", line 1: expected base64, got other characters"),
        ("5", ", line 1: expected an object with 'image', got a number"),
    ],
)
def test_bad_golden_lines_are_refused(tmp_path, line, message):
    """What is no image of a line is named with the line."""
    golden = tmp_path / "golden.jsonl"
    golden.write_text(line)

    assert refusal(golden=golden) == f"golden {golden}{message}"


def test_a_golden_that_is_no_image_is_refused():
    """A file that callers could not send is no golden either."""
    assert refusal(golden={"image": [b"x"]}) == (
        "golden: 'image' of row 0: expected an image as JPEG, PNG or WebP, got a text; send the bytes of the file"
    )
    assert refusal(golden={"image": [b"x", 5]}) == (
        "golden: 'image' of row 1: expected the path or bytes of an image, got int"
    )


def by_pillow(method, layout="HWC"):
    """Return a training pipeline of Pillow's."""

    def prepare(files):
        rows = []
        for data in files:
            image = Pillow.open(io.BytesIO(data)).convert("RGB").resize((8, 6), method)
            pixels = (np.asarray(image).astype(np.float32) - MEAN) / STD
            rows.append(np.moveaxis(pixels, -1, 0) if layout == "CHW" else pixels)
        return rows

    return prepare


SMOOTH = {"image": [saved(picture(20, 30, seed=seed)) for seed in range(3)]}


@mark.parametrize("layout", ["HWC", "CHW"])
def test_the_training_code_may_be_the_same(layout):
    """Pipelines that return the same pixels within rounding are accepted, in units of the model."""
    inputs = (FLOATS if layout == "HWC" else "image:float32[_,3,6,8]",)
    image = Image("image", (6, 8), mean=MEAN, std=STD, layout=layout)
    reference = by_pillow(Pillow.Resampling.BILINEAR, layout)

    opened(image, inputs, golden=SMOOTH, reference_preprocess=reference)


def test_other_pixels_of_the_training_code_are_refused():
    """A pipeline with another filter is refused, with the image, how far and where; or tolerated."""
    image = Image("image", (6, 8), mean=MEAN, std=STD)
    options = {"golden": SMOOTH, "reference_preprocess": by_pillow(Pillow.Resampling.NEAREST)}

    message = refusal(image, **options)

    assert message.startswith(
        "reference_preprocess: golden image 0: expected pixels within 1 levels in the mean and 8 in the "
        "worst one, got "
    )
    assert message.endswith(
        " of the bundle; compare size, resize, interpolation and antialias, or pass pixel_tolerance"
    )
    opened(image, pixel_tolerance=(255, 255), **options)


@mark.parametrize(
    ("reference", "message"),
    [
        (lambda _: 1 / 0, "division by zero"),
        (lambda files: np.zeros((len(files), 6, 8)), "expected the model's 'image' for 3 images, got float64[3, 6, 8]"),
        (lambda _: np.zeros((1, 6, 8, 3)), "expected the model's 'image' for 3 images, got float64[1, 6, 8, 3]"),
    ],
)  # fmt: skip
def test_a_reference_that_does_not_work_is_refused(reference, message):
    """A function that fails, or returns something else, is named."""
    assert message in refusal(golden=SMOOTH, reference_preprocess=reference)


@mark.parametrize("value", [(8, 1), 5, "a", (1, 300), (-1, 8)])
def test_a_tolerance_is_two_levels(value):
    """The mean comes first and the worst pixel second."""
    with raises(ExportError) as caught:
        spec_of(pixel_tolerance=value)

    assert str(caught.value) == (
        "pixel_tolerance: expected levels of 0 to 255, in the mean and in the worst pixel, such as "
        f"(1, 8), got {value!r}"
    )


def changes(*flags, preprocess=()):
    """Return the fields that flags set of a spec."""
    arguments = parser().parse_args(["model.py:spec", "--out", "bundle", *flags])
    spec = ExportSpec(model=None, preprocess=preprocess)
    return preprocess_changes(
        spec, declared_texts(arguments), declared_images(arguments), arguments
    )


def test_flags_declare_an_image():
    """An image with all of its fields."""
    options = [
        *("resize=shortest", "resize_to=256", "antialias=false", "interpolation=bicubic"),
        *("mean=123.68,116.28,103.53", "std=58", "layout=CHW", "max_pixels=1000000"),
    ]
    flags = [word for option in options for word in ("--image-option", f"image.{option}")]

    [image] = changes("--image", "image=224", *flags)["preprocess"]

    assert image == Image(
        "image",
        (224, 224),
        resize="shortest",
        resize_to=256,
        antialias=False,
        interpolation="bicubic",
        mean=(123.68, 116.28, 103.53),
        std=(58.0, 58.0, 58.0),
        layout="CHW",
        max_pixels=1_000_000,
    )
    assert changes("--image", "a=6,8")["preprocess"][0].size == (6, 8)


def test_flags_change_an_image_of_the_spec():
    """Options go to the spec's images, and texts beside them stay."""
    text = Text("text", tokenizer=object())
    declared = (Image("image", 8), text)

    found = changes("--image-option", "image.std=255", preprocess=declared)["preprocess"]

    assert found == (text, dataclasses.replace(Image("image", 8).checked(), std=(255.0,) * 3))
    assert changes(preprocess=declared) == {}


@mark.parametrize(
    ("flags", "message"),
    [
        (["--image-option", "a.std=1"], "--image-option: expected an image that --image declares, got 'a'"),
        (
            ["--image", "image=8", "--image-option", "imag.std=1"],
            "--image-option: expected an image of image, got 'imag'; did you mean 'image'?",
        ),
        (
            ["--image", "image=8", "--image-option", "image.sdt=1"],
            ("--image-option: expected NAME.FIELD=VALUE with a FIELD of resize, resize_to, crop, "
            "interpolation, antialias, mean, std, channels, layout, max_pixels, got 'image.sdt=1'; did you "
            "mean 'std'?"),
        ),
        (["--image", "image=big"], "image 'image': expected size of 1 to 65535, got 'big'"),
        (
            ["--image", "image=8", "--image-option", "image.mean=a"],
            "image 'image': expected mean a number, or 3, got 'a'",
        ),
    ],
)  # fmt: skip
def test_flags_that_do_not_read_are_refused(flags, message):
    """For a flag with an unknown image or field, the error lists those that exist."""
    with raises(ExportError) as caught:
        changes(*flags)
    assert str(caught.value) == message


@fixture(scope="module")
def bundle(tmp_path_factory):
    """Images to the means of their channels, normalised; buckets 1 and 2."""
    out = tmp_path_factory.mktemp("images") / "bundle"
    report = export_model(
        spec_of(Image("image", (6, 8), mean=MEAN, std=STD), page_sample=True, golden=SMOOTH),
        out=out,
    )
    assert report.inputs == ("image: uint8[_, 6, 8, 3]",)
    return out


def test_a_bundle_takes_images(bundle):
    """Files are answered as the model answers their pixels, and pixels as themselves."""
    model = load(bundle)
    assert model.manifest.format_version == 4
    assert model.manifest.page_sample
    red = plain(200, 100, 50)

    answers = model.predict({"image": [red, bytearray(red)]})
    pixels = model.predict({"image": np.full((2, 6, 8, 3), (200, 100, 50), np.uint8)})

    [expected] = {tuple(row) for row in np.round((np.array([[200, 100, 50]]) - MEAN) / STD, 4)}
    for found in (answers, pixels):
        np.testing.assert_allclose(found["output"], [expected] * 2, atol=1e-4)
    as_objects = np.array([red, red], np.object_)
    np.testing.assert_array_equal(model.predict({"image": as_objects})["output"], answers["output"])


@mark.parametrize(
    ("value", "message"),
    [
        param([b"x"], "input 'image'[0]: expected an image as JPEG, PNG or WebP, got a text; send the bytes of the file", id="noise"),
        param(b"x", "input 'image': expected a list of images, got bytes", id="alone"),
        param("a.png", "input 'image': expected a list of images, got str", id="path-alone"),
        param([None], "input 'image'[0]: expected the bytes of an image, got NoneType", id="none"),
        param([Pillow.new("RGB", (8, 6))], "input 'image'[0]: expected the bytes of an image, got Image", id="opened"),
        param(["a.png"], "input 'image'[0]: expected the bytes of an image, got str", id="path"),
        param(
            np.zeros((1, 6, 8, 3), np.float32),
            "input 'image': expected uint8[_, 6, 8, 3], got float32[1, 6, 8, 3]",
            id="floats",
        ),
        param(np.array([b"x\0"]), "input 'image': expected images [_], got bytes16[1]", id="fixed-width"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_by_name(bundle, value, message):
    """Neither paths nor floats are taken for images or pixels."""
    with raises(SignatureMismatch) as caught:
        load(bundle).predict({"image": value})
    assert str(caught.value) == message


def test_goldens_hold_files_and_pixels(bundle):
    """A change in the image library's pixels is distinguished from a change in the model's answers."""
    opened_bundle = open_bundle(bundle)
    preparer = load(bundle).preparer
    [golden] = opened_bundle.manifest.goldens

    assert [row["image"] for row in read_raw(opened_bundle, golden)] == SMOOTH["image"]
    assert check_raw_goldens(opened_bundle, preparer) == []


@mark.parametrize(("levels", "found"), [(1, 0), (2, 1)])
def test_pixels_within_rounding_are_the_same(bundle, tmp_path, levels, found):
    """One level is what releases round to either side; more is named, with both versions."""
    [golden] = open_bundle(bundle).manifest.goldens
    other = Pillow.open(io.BytesIO(SMOOTH["image"][0]))
    shifted = np.asarray(other).astype(int)
    shifted += np.where(shifted < 128, levels, -levels)
    line = json.dumps({"image": b64(saved(Pillow.fromarray(shifted.astype(np.uint8))))})

    def change(data):
        return b"\n".join([line.encode(), *data.splitlines()[1:], b""])

    changed = open_bundle(altered(bundle, tmp_path / "b", {golden.raw.path: change}))
    lines = check_raw_goldens(changed, load(bundle).preparer)

    assert len(lines) == found
    here = library_version()
    for text in lines:
        assert text.startswith("golden/0.jsonl, row 0: expected image[")
        assert text.endswith(
            f"; the image library gives other pixels than at export (pillow {here} then, {here} here)"
        )
