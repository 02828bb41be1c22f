"""gRPC: the server, its streams and its health service.

Importing it limits what the library logs: a client must not be able to fill the log.
"""

import logging
import os

# The library's core writes a line to stderr for much that a client does wrong, such as metadata beyond
# the limit. It reads this when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _is_not_of_a_client(record: logging.LogRecord) -> bool:
    """Whether a record of grpc.aio is about more than a response whose client has gone."""
    return not record.getMessage().startswith("ExecuteBatchError raised in core")


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_not_of_a_client)
