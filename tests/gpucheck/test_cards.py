"""Bundles compiled for GPUs that are not here, by XLA itself; `./build.sh gpucheck` runs these."""

import dataclasses
import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
from pytest import fixture, mark, raises, skip

from examples.digits.model import DigitClassifier
from export import export_model
from export.errors import VerificationError
from runtime import gpu_check
from runtime.__main__ import main
from runtime.accelerators import CARDS
from runtime.bundle import open_bundle
from runtime.card_report import read_report, report_file
from tests.serving import ROOT

pytestmark = mark.gpucheck


@fixture(scope="module", autouse=True)
def plugin():
    """Skips where there is nothing that compiles for GPUs."""
    if not (ROOT / "build" / "gpucheck" / "bin" / "python").exists():
        skip("build/gpucheck is missing; ./build.sh gpucheck makes it")


class Attention(nn.Module):
    """Attention in a dtype of choice, float32 outside of it."""

    dtype: object

    @nn.compact
    def __call__(self, x):
        heads = [nn.DenseGeneral((4, 32), dtype=self.dtype)(x) for _ in range(3)]
        pooled = jax.nn.dot_product_attention(*heads).mean(axis=1).reshape(len(x), -1)
        return nn.Dense(3)(pooled.astype(jnp.float32))


def exported(out, dtype, **options):
    """Export attention in a dtype."""
    model = Attention(dtype)
    params = model.init(jax.random.key(0), jnp.ones((1, 64, 64)))
    return export_model(
        model, params, inputs=["x:float32[_,64,64]"], buckets=(1, 8), out=out, **options
    )


def compiled(bundle, *arguments):
    """Run the command; return its exit status, the report and what it said."""
    command = [sys.executable, "-m", "runtime", "compile", str(bundle), *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_the_digits_bundle_compiles_for_every_card(tmp_path):
    """The example's programs compile for each known card and fit, with the memory that each takes."""
    model = DigitClassifier()
    params = model.init(jax.random.key(0), jnp.ones((1, 8, 8)))
    export_model(
        model, params, inputs=["image:float32[_,8,8]"], buckets=(1, 4, 64), out=tmp_path / "b"
    )

    status, report, _ = compiled(tmp_path / "b", "--target", "t4,l4,a100,a100-80gb,h100,h200")

    assert status == 0
    assert list(report["cards"]) == ["t4", "l4", "a100", "a100-80gb", "h100", "h200"]
    for about in report["cards"].values():
        assert [p["program"] for p in about["programs"]] == ["b1", "b64"]
        assert all(p["compiles"] and p["fits"] and p["reason"] == "" for p in about["programs"])
        assert all(p["argument_bytes"] > 4 * 64 for p in about["programs"])


def test_attention_in_bfloat16_is_refused_for_t4_at_export(tmp_path):
    """The card has no bfloat16: the export says so before there is a bundle, and others take it."""
    with raises(VerificationError) as error:
        exported(tmp_path / "b", jnp.bfloat16, check_gpu=["t4"])

    assert str(error.value) == (
        "the bundle does not run on t4: program b1 on t4: expected it to compile, got: UNIMPLEMENTED: "
        "Unsupported algorithm on the current device(s): ALG_DOT_BF16_BF16_F32; t4 has no bfloat16 in "
        "hardware: compute in float16 or float32, or choose a card from l4 on (and 1 more)"
    )
    assert list(tmp_path.iterdir()) == []

    report = exported(tmp_path / "b", jnp.bfloat16, check_gpu="l4")

    assert report.compiles_for == ("l4",)
    assert "compiles for l4; nothing ran there" in str(report)
    kept = read_report(tmp_path / "b", open_bundle(tmp_path / "b").digest)
    assert [(one.card, one.program, one.fits) for one in kept.programs] == [
        ("l4", "b1", True),
        ("l4", "b8", True),
    ]


def test_attention_in_float32_compiles_for_t4(tmp_path):
    """What the message recommends is accepted."""
    report = exported(tmp_path / "b", jnp.float32, check_gpu=["t4"])

    assert report.compiles_for == ("t4",)


def test_what_is_too_large_for_a_card_is_found_though_xla_compiles_it(
    tmp_path, monkeypatch, capsys
):
    """A run that takes more than JAX has of a card's memory is exit status 5, with both figures."""
    exported(tmp_path / "b", jnp.float32)
    small = dataclasses.replace(CARDS["t4"], memory_bytes=100_000)
    monkeypatch.setitem(CARDS, "t4", small)

    status = main(["compile", str(tmp_path / "b"), "--target", "t4"])

    printed = capsys.readouterr().out
    assert status == 5
    assert "program b1 on t4: expected at most 75 kB of memory, got " in printed
    assert printed.endswith("FAILED: does not run on t4\n")


def test_a_limit_ends_what_takes_too_long(tmp_path):
    """A program that is not compiled in its time is one that does not compile; others follow it."""
    exported(tmp_path / "b", jnp.float32)

    status, report, _ = compiled(tmp_path / "b", "--target", "l4", "--limit", "0.001")

    assert status == 3
    assert [p["reason"] for p in report["cards"]["l4"]["programs"]] == [
        "it was not compiled within 0.001 s"
    ] * 2


def test_a_description_that_ends_xla_is_reported(tmp_path, monkeypatch):
    """XLA divides by zero where a description lacks something; that ends a process, and not this one."""
    exported(tmp_path / "b", jnp.float32)
    command = gpu_check._CHILD.replace(
        "from runtime.gpu_target",
        "from runtime.accelerators import Card\n"
        "whole = Card.target_config\n"
        "bare = 'gpu_device_info { cuda_compute_capability { major: 7 minor: 5 } } platform_name: \"CUDA\"'\n"
        "Card.target_config = property(lambda c: bare if c.name == 't4' else whole.fget(c))\n"
        "from runtime.gpu_target",
    )
    monkeypatch.setattr(gpu_check, "_CHILD", command)

    report = gpu_check.check_cards(
        open_bundle(tmp_path / "b"),
        [CARDS["t4"], CARDS["l4"]],
        limit_s=300,
        progress=lambda _: None,
    )

    found = {(one.card, one.program): one.reason for one in report.programs}
    assert found["l4", "b1"] == found["l4", "b8"] == ""
    assert "SIG" in found["t4", "b8"]
    assert not report_file(tmp_path / "b").exists()
