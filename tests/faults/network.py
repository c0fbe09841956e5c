"""
A network that can be cut: a namespace with a road to the database and a road to Redis, each with addresses of its own.

A cut is silent, as when a cable is pulled between two switches: packets go to a hardware address that nobody has, so
links stay up, nobody is refused, and neither side is told by a reset, by ICMP or by an address that does not resolve.
Each road is cut by itself.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from tests.support.processes import Process
from tests.support.requirements import require_network_namespaces

ADDRESSES = IPv4Network("198.18.0.0/15")
"""For tests of network devices (RFC 2544): nothing on any network has such an address."""

ADDRESSES_OF_ISLAND = 8
"""Two roads, each a network of four addresses."""

NOBODY = "02:00:00:00:00:0f"
"""The hardware address that packets go to which are to be lost."""

NEAR, FAR = "02:00:00:00:00:01", "02:00:00:00:00:02"


@dataclass(frozen=True)
class Road:
    """The addresses of both ends; a program on the island finds at `near` what listens on the machine."""

    near: str
    far: str


class Island:
    """A namespace; programs that are started there reach the machine by two roads alone, while they are not cut."""

    def __init__(self, name: str, first: IPv4Address) -> None:
        self.name = name
        self._near_link, self._far_link = f"{name}h", f"{name}n"
        self.to_database = Road(str(first + 1), str(first + 2))
        self.to_redis = Road(str(first + 5), str(first + 6))
        self.roads = (self.to_database, self.to_redis)

    def connect(self) -> None:
        near, far, name = self._near_link, self._far_link, self.name
        _ip("link", "add", near, "address", NEAR, "type", "veth", "peer", "name", far, "address", FAR, "netns", name)
        for road in self.roads:
            _ip("addr", "add", f"{road.near}/30", "dev", near)
            _ip("-n", name, "addr", "add", f"{road.far}/30", "dev", far)
        _ip("link", "set", near, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", far, "up")
        self.heal()

    def close(self) -> None:
        # The link goes with the namespace, but only once the last connection in it has been given up.
        subprocess.run(["ip", "link", "del", self._near_link], capture_output=True, check=False)
        _ip("netns", "del", self.name)

    def cut(self, *roads: Road) -> None:
        """Lose every packet of these roads, or of all, in both directions."""
        self._lead(roads, NOBODY, NOBODY)

    def heal(self, *roads: Road) -> None:
        self._lead(roads, NEAR, FAR)

    def _lead(self, roads: tuple[Road, ...], near: str, far: str) -> None:
        for road in roads or self.roads:
            _ip("neigh", "replace", road.far, "lladdr", far, "dev", self._near_link, "nud", "permanent")
            _ip("-n", self.name, "neigh", "replace", road.near, "lladdr", near, "dev", self._far_link,
                "nud", "permanent")  # fmt: skip

    def python(self, *arguments: str, banner: str, environment: dict[str, str]) -> Process:
        """A Python program on the island; the process is the program's own, so signals reach it."""
        command = ["ip", "netns", "exec", self.name, sys.executable, *arguments]
        return Process(command, banner=banner, environment=environment)

    def packets(self, process: Process) -> int:
        """How many packets have come to the island's programs, their own machine's answers among them."""
        assert process.process is not None
        lines = Path(f"/proc/{process.process.pid}/net/snmp").read_text().splitlines()
        keys, values = (line.split() for line in lines if line.startswith("Ip:"))
        return int(values[keys.index("InDelivers")])


@contextmanager
def island() -> Iterator[Island]:
    """An island of its own, which is gone afterwards; the test is skipped where namespaces cannot be made."""
    require_network_namespaces()
    made = _found()
    try:
        made.connect()
        yield made
    finally:
        made.close()


def _found() -> Island:
    """An island with a free number; making the namespace is what takes the number, also from parallel runs."""
    while True:
        number = random.randrange(ADDRESSES.num_addresses // ADDRESSES_OF_ISLAND)
        name = f"pgng{number}"
        if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0:
            return Island(name, ADDRESSES[number * ADDRESSES_OF_ISLAND])


def _ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise
