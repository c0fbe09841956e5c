"""TCP ports for the servers of a test run."""

import itertools
import random
import socket

# Below the range that systems take ports of outgoing connections from (32768 on Linux, 49152 elsewhere): such
# a port cannot be taken away between the look and the server's start.
FIRST_PORT, LAST_PORT = 20_000, 32_000

# Each run walks through the range from a place of its own, so that it gives no port twice and parallel runs
# rarely meet.
_ports = itertools.cycle(range(FIRST_PORT, LAST_PORT))
_candidates = itertools.islice(_ports, random.randrange(LAST_PORT - FIRST_PORT), None)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on and that this run has not given away yet."""
    for port in _candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("the candidates repeat for ever")
