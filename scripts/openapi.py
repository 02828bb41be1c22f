"""Write server/http/openapi.json, which the server answers with, from docs/openapi.yaml.

python -m scripts.openapi [--check]
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "docs" / "openapi.yaml"
SERVED = ROOT / "server" / "http" / "openapi.json"


def written() -> str:
    """Return the description as JSON."""
    return json.dumps(yaml.safe_load(SOURCE.read_text()), ensure_ascii=False, indent=1) + "\n"


def main() -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    if not parser.parse_args().check:
        SERVED.write_text(written())
        return 0
    if not SERVED.is_file() or SERVED.read_text() != written():
        print(
            f"error: {SERVED}: expected what docs/openapi.yaml says; run python -m scripts.openapi"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
