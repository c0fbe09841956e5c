"""What catching up costs the database: the journal is read a few times, whatever the client has room for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings

from pgnotify_gql.hub.feed import Feed
from tests.support.databases import Database
from tests.support.initial import declare_initial, live
from tests.support.layers import default_layer
from tests.support.subscribers import Chat, subscribers

pytestmark = pytest.mark.postgres("18")

MISSED = 2_000


@pytest.fixture
def chat(database_triggers: Database) -> Iterator[Chat]:
    with default_layer():
        yield Chat(database_triggers)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each time that an operation has read the journal: the database may have to sort all that is left for it."""
    asked: list[Any] = []
    replay = Feed.replay

    def counted(feed: Feed, *args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        return replay(feed, *args, **kwargs)

    monkeypatch.setattr(Feed, "replay", counted)
    return asked


async def test_a_client_with_little_room_that_reads_all_the_time_makes_the_journal_be_read_a_few_times(
    chat: Chat, replays: list[Any]
) -> None:
    schema = declare_initial(lambda cls, info: [])
    with override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True, "OUTBOX_MESSAGES": 20}):
        async with subscribers(schema, chat.alice) as (subscriber,):
            told = await live(subscriber)
        for number in range(MISSED):
            chat.insert(str(number))
        replays.clear()
        async with subscribers(schema, chat.alice) as (subscriber,):
            told = await live(subscriber, cursor=told.cursor)
    assert told.changes == [str(number) for number in range(MISSED)]
    assert len(replays) <= 10
