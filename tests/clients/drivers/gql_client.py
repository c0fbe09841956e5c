"""
The library gql, in a session that connects again by itself; started like the drivers in JavaScript, see common.mjs.

`library` is the name of a transport and that of a subprotocol.  The session connects again, and the application
subscribes again, as gql has it.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from gql import Client, GraphQLRequest
from gql.transport.aiohttp_websockets import AIOHTTPWebsocketsTransport
from gql.transport.exceptions import TransportClosed, TransportConnectionFailed
from gql.transport.websockets import WebsocketsTransport

RETRY = 0.05
"""Seconds; by default gql waits for up to a minute."""

TRANSPORTS = {"websockets": WebsocketsTransport, "aiohttp": AIOHTTPWebsocketsTransport}

Connect = Callable[[], Awaitable[None]]


def tell(line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


class Subscriber:
    """One client with one subscription."""

    def __init__(self, number: int, options: dict[str, Any]) -> None:
        self._number = number
        name, subprotocol = options["library"].split()
        self._transport = TRANSPORTS[name](options["url"], headers=options["headers"], subprotocols=[subprotocol])
        self._request = GraphQLRequest(options["query"], variable_values=options["variables"])
        self._acknowledged = asyncio.Event()

    async def run(self) -> None:
        try:
            client = Client(transport=self._transport)
            session = await client.connect_async(  # type: ignore[no-untyped-call]
                reconnecting=True, retry_connect=self._retry_connect
            )
            while True:
                await self._receive(session)
        except Exception as error:  # whatever it is, the test is told
            tell({"client": self._number, "error": repr(error)})

    def _retry_connect(self, connect: Connect) -> Connect:
        """What the session connects with."""

        async def connect_again() -> None:
            while not self._acknowledged.is_set():
                try:
                    await connect()
                except Exception:
                    # gql 4.0 takes a transport for connected whose socket was closed before the acknowledgement, and
                    # would never connect it again.
                    await self._transport.close()
                    await asyncio.sleep(RETRY)
                else:
                    self._acknowledged.set()
                    tell({"client": self._number, "connected": True})

        return connect_again

    async def _receive(self, session: Any) -> None:
        # A session of gql 4.0 sends a subscription also while the socket still waits for its acknowledgement. The
        # protocol has servers close it then, with 4401.
        await self._acknowledged.wait()
        try:
            async for data in session.subscribe(self._request):
                tell({"client": self._number, "change": data["messageChanges"]})
            tell({"client": self._number, "complete": True})
        except (TransportConnectionFailed, TransportClosed):
            self._acknowledged.clear()


async def main() -> None:
    options = json.loads(sys.argv[1])
    async with asyncio.TaskGroup() as tasks:
        for number in range(options["clients"]):
            tasks.create_task(Subscriber(number, options).run(), name=f"client {number}")
        tell({"started": True})


asyncio.run(main())
