"""A bundle on paper to attack, and bundles that run to tamper with."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from pytest import fixture

from runtime.bundle import open_bundle
from runtime.tensors import write_tensors
from tests.runtime.paper import write_bundle


@fixture
def paper(tmp_path):
    """A fresh bundle on paper."""
    write_bundle(tmp_path / "paper")
    return tmp_path / "paper"
