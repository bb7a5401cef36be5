"""Ports for programs that must be told which one to listen on."""

import contextlib
import pathlib
import random
import socket

LOWEST = 10_000
# From the first number up the system gives ports to whoever connects or asks for any: one that is free now may be taken
# a moment later. Where that begins below LOWEST, there is nothing to keep clear of.
EPHEMERAL = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
HIGHEST = EPHEMERAL if EPHEMERAL > 2 * LOWEST else 60_000


def free_port(*offsets):
    """A port that nobody uses, as little as those that lie `offsets` above it."""
    offsets = (0, *offsets)
    for _ in range(1000):
        first = random.randrange(LOWEST, HIGHEST - max(offsets))
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for offset in offsets:
                held.enter_context(socket.socket()).bind(("127.0.0.1", first + offset))
            return first
    raise AssertionError("no free port was found")
