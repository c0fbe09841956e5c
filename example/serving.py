"""
Daphne inside the demo's own process: one process to stop, and none left behind when it is killed.

Importing this module makes Twisted choose the asyncio reactor, which it must do
before anything else asks for a reactor.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

from daphne.endpoints import build_endpoint_description_strings
from daphne.server import Server, twisted_loop
from twisted.internet import reactor

from example.problems import DemoError

TASKS_LIMIT = 1.0
"""Seconds in which the listener and the like may put their things in order."""


def check_address(host: str, port: int) -> None:
    """Raise DemoError if nobody could listen there. Called before anything is started."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise DemoError(
                f"port {port} of {host} is in use: stop the other program or choose another "
                f"with PORT={port + 1 if port < 65535 else 8000} make demo"
            ) from error
        if error.errno == errno.EACCES:
            raise DemoError(f"you may not listen on port {port}: try PORT=8000 make demo") from error
        raise DemoError(f"HOST {host} is no address of this machine: try HOST=127.0.0.1 make demo") from error


class WebServer:
    def __init__(self, application: Any, host: str, port: int) -> None:
        self._server = Server(
            application,
            endpoints=build_endpoint_description_strings(host=host, port=port),
            signal_handlers=False,
            verbosity=0,
        )

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until `stop` is called; `ready` runs once connections are accepted."""
        self._server.ready_callable = ready
        self._server.run()
        if not self._server.listening_addresses:
            raise DemoError("the port was taken meanwhile: choose another with PORT=8001 make demo")
        twisted_loop.run_until_complete(end_tasks())

    def stop(self) -> None:
        """Safe to call from a signal handler."""
        reactor.callFromThread(self._server.stop)


async def end_tasks() -> None:
    """Cancel what still runs in the loop, the inline listener above all, and let it finish."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=TASKS_LIMIT)
