"""Ways to alter a bundle: its manifest as text and as JSON, its other files as bytes."""

import hashlib
import json
import random
import shutil
from pathlib import Path

MANIFEST = "manifest.json"
# Values that some reader may take for another type, or for a size.
_STRANGE = (None, True, -1, 0, 1, 2**31, 2**63, 1e308, -0.0, "", "..", "a/../b", "\x00", [], {})


def mutate(bundle: Path, out: Path, rng: random.Random) -> str:
    """Copy a bundle and alter one file of it; leave the digests as they were.

    Returns:
      The file that was altered.
    """
    shutil.copytree(bundle, out)
    files = sorted(str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file())
    programs = [name for name in files if name.startswith("programs/")]
    others = [name for name in files if name.startswith(("params", "golden"))]
    name = rng.choice(rng.choice(([MANIFEST], programs, programs, others)))
    path = out / name
    data = path.read_bytes()
    while (altered := _altered(name, data, rng)) == data:
        pass
    path.write_bytes(altered)
    return name


def forge(out: Path, name: str) -> None:
    """Make the manifest right for an altered file again, as an attacker would."""
    if name == MANIFEST:
        return
    manifest = json.loads((out / MANIFEST).read_bytes())
    if name.endswith(".stablehlo"):
        # It is read only where the other form is not, which is a matter of versions.
        (out / name.replace(".stablehlo", ".exported")).write_bytes(b"")
        manifest["exporter"]["jax"] = "0.0.1"
    for entry in _files(manifest):
        data = (out / entry["path"]).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (out / MANIFEST).write_text(json.dumps(manifest))


def _files(manifest: dict) -> list[dict]:
    programs = [p[form] for p in manifest["programs"] for form in ("exported", "stablehlo")]
    goldens = [g[form] for g in manifest["goldens"] for form in ("file", "raw") if form in g]
    tokenizers = [stage["tokenizer"] for stage in manifest.get("preprocess", ())]
    return [*programs, *goldens, *tokenizers, *manifest["params"]["files"]]


def _altered(name: str, data: bytes, rng: random.Random) -> bytes:
    if name == MANIFEST and rng.random() < 0.7:
        return json.dumps(other_json(json.loads(data), rng)).encode()
    kind = rng.choice((_flip, _flip, _flip, _set, _cut, _drop, _repeat))
    return kind(bytearray(data), rng)


def _flip(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _set(data: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1)))
    data[at : at + width] = value.to_bytes(width, "little")
    return bytes(data)


def _cut(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data))])


def _drop(data: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 16, 100))]
    return bytes(data)


def _repeat(data: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return bytes(data[:at] + data[at : at + rng.choice((1, 16, 100))] * 2 + data[at:])


def other_json(value: object, rng: random.Random) -> object:
    """Alter one value somewhere in a JSON value."""
    places = list(_places(value))
    holder, key = rng.choice(places)
    match rng.randrange(4):
        case 0:
            holder[key] = rng.choice(_STRANGE)
        case 1:
            holder[key] = rng.choice(places)[0]
        case 2 if isinstance(holder, dict):
            holder[f"{key}{rng.randrange(10)}"] = holder.pop(key)
        case _:
            holder[key] = _near(holder[key], rng)
    return _acyclic(value)


def _near(value: object, rng: random.Random) -> object:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + rng.choice((-1, 1, 0.5, 1000))
    if isinstance(value, str):
        return value[::-1]
    return list(value)[:-1] if isinstance(value, list) else {}


def _places(value: object) -> list[tuple]:
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


def _acyclic(value: object, depth: int = 0) -> object:
    """Return a copy that JSON can write: a value that was put into itself ends after a while."""
    if depth > 12 or not isinstance(value, dict | list):
        return None if isinstance(value, dict | list) else value
    if isinstance(value, dict):
        return {key: _acyclic(item, depth + 1) for key, item in value.items()}
    return [_acyclic(item, depth + 1) for item in value]
