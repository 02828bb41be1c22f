"""Runs an image as `docker run` does: `python -m tests.image.as_docker CONFIG ROOT`.

Vertex's variables are handed on, and SIGTERM to process 1; its exit status comes back.
"""

import json
import os
import signal
import sys
from pathlib import Path

from tests.image.containers import Image, first_process

_PASSED = ("AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE")


def main(config, root):
    """Run it; return the exit status."""
    environ = {name: os.environ[name] for name in _PASSED}
    bundle = os.environ["AIP_STORAGE_URI"]
    environ["AIP_STORAGE_URI"] = "/mnt/models" if bundle else ""
    environ |= {"HLOSERVE_GRPC_PORT": "-1", "HLOSERVE_DRAIN_DELAY_S": "0.5"}
    image = Image(json.loads(config), Path(root))
    with image.started(models=bundle, streams=None, **environ) as container:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(first_process(container), signal.SIGTERM))
        return container.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
