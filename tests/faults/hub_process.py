"""
A hub in a process of its own, as a server process has it, and one subscriber to messages.

Run as ``python -m tests.faults.hub_process`` with the environment of the example project: prints "joined", and then
each text received as a line of JSON.
"""

import asyncio
import json
import sys

import django


async def main() -> None:
    from example.conversations.models import Message
    from pgnotify_gql.hub.process import open_hub
    from tests.support.operations import Subscriber

    class Printing(Subscriber):
        def deliver(self, payload: str) -> None:
            sys.stdout.write(f"{payload}\n")

    async with open_hub() as hub:
        await hub.join(Printing(Message).operation)
        sys.stdout.write("joined\n")
        await asyncio.Event().wait()


def received(output: str) -> list[str]:
    """What such a process has printed so far, of its subscriber."""
    complete, _, _ = output.rpartition("\n")
    lines = [line for line in complete.splitlines() if line.startswith(('"', "{"))]
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    django.setup()
    asyncio.run(main())
