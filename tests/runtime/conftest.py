"""A fake bundle to attack, and copies of bundles that run to tamper with."""

import hashlib
import json
import shutil

from pytest import fixture

from runtime import load
from tests.runtime.fake_bundle import write_bundle


@fixture
def fake_bundle(tmp_path):
    """A fresh fake bundle."""
    write_bundle(tmp_path / "fake_bundle")
    return tmp_path / "fake_bundle"


@fixture
def copy_of(tmp_path):
    """Copies of a bundle, to be tampered with."""

    def copy(bundle):
        return shutil.copytree(bundle, tmp_path / bundle.name)

    return copy


@fixture
def redigest():
    """Makes a bundle's manifest right for its files again, as a careful attacker would."""

    def redigest(bundle):
        path = bundle / "manifest.json"
        manifest = json.loads(path.read_bytes())
        programs = [p[form] for p in manifest["programs"] for form in ("exported", "stablehlo")]
        goldens = [golden["file"] for golden in manifest["goldens"]]
        for file in [*programs, *goldens, *manifest["params"]["files"]]:
            data = (bundle / file["path"]).read_bytes()
            file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        path.write_text(json.dumps(manifest))

    return redigest


@fixture(scope="session")
def classifier(classifier_bundle):
    """The classifier, loaded on the CPU."""
    return load(classifier_bundle, "cpu")


@fixture(scope="session")
def tagger(tagger_bundle):
    """The tagger, loaded on the CPU."""
    return load(tagger_bundle, "cpu")


@fixture
def value(fake_bundle):
    """manifest.json of a fake bundle, as JSON values."""
    return json.loads((fake_bundle / "manifest.json").read_bytes())


@fixture
def target(tmp_path):
    """Where a bundle is to be written, beside nothing else."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "bundle"
