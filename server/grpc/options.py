"""Options of gRPC's C core: limits of memory, connections and times of clients."""

import math

from server.config import ServerConfig

# Connections at once; those beyond are closed.
CONNECTIONS = 1024
# Calls of one connection at once; a client that has more waits for those to end.
CONCURRENT_STREAMS = 128
# Calls of one connection that its client counts as ended, since they were answered or reset, and
# this process not yet. Beyond these more calls are refused.
ENDING_STREAMS = 128
# How long clients have to close a connection that has announced its end. All libraries do so as soon as they read
# that, and have no call there.
LINGER_S = 2.0
# Bytes of a message that arrive before its call asks for it. Left to itself, gRPC would make that
# 4 MiB for each call as soon as it has measured the connection.
WINDOW = 65535
# Seconds that a call may wait for this process to accept it: a client has its own deadline.
_FOR_EVER_S = 1 << 20
# Calls that may wait for that: all that connections can have open. Only clients that end
# connections and open others as fast as they can have more wait. Beyond that gRPC cancels calls
# of any client, and none tries again; by its own bounds, 1,000 and 3,000, it did so in a
# burst of honest calls.
PENDING = CONNECTIONS * CONCURRENT_STREAMS
# The largest number that gRPC's C core takes: of bytes, or of milliseconds.
_LARGEST = 2**31 - 1


def address(host: str, port: int) -> str:
    """Return an address as gRPC reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def options(config: ServerConfig) -> list[tuple[str, int]]:
    """Return the options of the server."""
    found = [
        # A port that is taken is an error, not shared in silence, except with our own.
        ("grpc.so_reuseport", int(config.shares_ports)),
        ("grpc.max_allowed_incoming_connections", CONNECTIONS),
        ("grpc.max_concurrent_streams", CONCURRENT_STREAMS),
        ("grpc.http2.max_deallocating_streams", ENDING_STREAMS),
        ("grpc.server.max_pending_requests", PENDING),
        ("grpc.server.max_pending_requests_hard_limit", PENDING),
        ("grpc.server_max_unrequested_time_in_server", _FOR_EVER_S),
        ("grpc.max_receive_message_length", min(config.max_body_bytes, _LARGEST)),
        ("grpc.max_send_message_length", -1),
        ("grpc.http2.lookahead_bytes", WINDOW),
        ("grpc.http2.bdp_probe", 0),
        # Clients' pings, however many and between calls too, are no offence.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        # A client that vanished is noticed, and its requests are cancelled.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
    if config.grpc_max_connection_age_s:
        found += [
            ("grpc.max_connection_age_ms", math.ceil(1e3 * config.grpc_max_connection_age_s)),
            ("grpc.max_connection_age_grace_ms", round(min(config.request_timeout_ms, _LARGEST))),
        ]
    return found
