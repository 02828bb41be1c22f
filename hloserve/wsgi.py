"""The application for any WSGI server: `gunicorn --threads 16 'hloserve.wsgi:create()'`.

As `server.wsgi:create()`, but found in a folder that has a `server.py` of its own as well.
"""

from hloserve.packages import import_own

import_own("runtime", "server")

from server.wsgi import create  # noqa: E402 (of our package alone)

__all__ = ["create"]
