"""The same in asynchronous tests, which Django runs in an event loop."""

from __future__ import annotations

from example.conversations.models import Message
from example.schema import schema
from pgnotify_gql.testing import GraphqlCommunicator, NothingSentError, apump

from .room import RoomTestCase

MESSAGES = "subscription ($id: ID!) { messages(conversationId: $id) { text } }"
EDIT = 'mutation ($id: ID!, $ids: [ID!]!) { editMessages(conversationId: $id, ids: $ids, text: "cake") { edited } }'


class AsynchronousTests(RoomTestCase):
    async def test_a_member_is_told_what_is_written_and_edited(self) -> None:
        room = {"id": self.kitchen.pk}
        async with GraphqlCommunicator(schema, self.alice) as alice, GraphqlCommunicator(schema, self.bob) as bob:
            messages = await alice.asubscribe(MESSAGES, room)
            message = await Message.objects.acreate(conversation=self.kitchen, author=self.bob, text="tea")
            await bob.aexecute(EDIT, {**room, "ids": [message.pk]})
            await apump()
            assert [found["messages"]["text"] async for found in messages] == ["cake", "cake"]

            await messages.acomplete()
            await Message.objects.filter(pk=message.pk).aupdate(text="rum")
            await apump()
            await messages.anothing()

    async def test_that_nothing_was_sent_is_told(self) -> None:
        async with GraphqlCommunicator(schema, self.alice) as client:
            messages = await client.asubscribe(MESSAGES, {"id": self.kitchen.pk})
            with self.assertRaisesMessage(NothingSentError, "nothing was sent"):
                await messages.anext()
