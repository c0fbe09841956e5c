"""What the guides tell one to write does what they say: each is made into a project, which runs."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.howto.client import Client
from tests.howto.conftest import Make, Serve

pytestmark = pytest.mark.postgres("18")


class Chat:
    """What other programs write."""

    def __init__(self, sql: psycopg.Connection) -> None:
        self.sql = sql

    def conversation(self, *members: int) -> int:
        key = self._new("insert into chat_conversation (title) values ('talk') returning id")
        for member in members:
            self.sql.execute("insert into chat_membership (conversation_id, user_id) values (%s, %s)", [key, member])
        return key

    def say(self, conversation: int, author: int, text: str, *, draft: bool = False) -> int:
        return self._new(
            "insert into chat_message (conversation_id, author_id, text, draft) values (%s, %s, %s, %s) returning id",
            conversation,
            author,
            text,
            draft,
        )

    def _new(self, statement: Any, *parameters: Any) -> int:
        row = self.sql.execute(statement, parameters).fetchone()
        assert row is not None
        return int(row[0])


class TestAuthentication:
    def test_sessions_and_tokens_say_who_one_is_and_whoever_has_none_is_refused(
        self, project_of: Make, serve: Serve
    ) -> None:
        project = project_of("authentication")
        cookie = project.users["ann"].cookie
        token, old = project.shell(
            "from chat.tokens import make_token; from django.contrib.auth.models import User;"
            "user = User.objects.get(username='ann'); print(make_token(user)); print(make_token(user, -1))"
        ).split()
        server = serve(project)
        with Client(server) as client:
            assert client.code() == 4403
        with Client(server, cookie=cookie) as client:
            assert client.acknowledged().execute("{ viewer }") == {"data": {"viewer": "ann"}}
        for wrong in ({}, {"token": "mine"}, {"token": old}):
            with Client(server, wrong, path="/graphql/token/") as client:
                assert client.code() == 4403
        # A cookie has no say beside a token.
        with Client(server, cookie=cookie, path="/graphql/token/") as client:
            assert client.code() == 4403
        with Client(server, {"token": token}, path="/graphql/token/") as client:
            assert client.acknowledged().execute("{ viewer }") == {"data": {"viewer": "ann"}}

    def test_a_socket_is_closed_when_its_token_expires(self, project_of: Make, serve: Serve) -> None:
        project = project_of("authentication")
        server = serve(project)
        token = project.shell(
            "from chat.tokens import make_token; from django.contrib.auth.models import User;"
            "print(make_token(User.objects.get(username='ann'), 6))"
        )
        with Client(server, {"token": token}, path="/graphql/token/") as client:
            assert client.acknowledged().code() == 4403

    def test_whoever_is_blocked_is_closed_by_a_call_or_by_the_row_that_changes(
        self, project_of: Make, serve: Serve, sql: psycopg.Connection
    ) -> None:
        project = project_of("authentication")
        cookie = project.users["ann"].cookie
        server = serve(project)
        with Client(server, cookie=cookie) as client:
            client.acknowledged().execute("{ viewer }")
            sql.execute("update auth_user set is_active = false")
            assert client.code() == 4403
        # The call goes through the layer, which is of one process here: that it can be made is what is looked at.
        project.shell("from chat.blocking import *; block(get_user_model().objects.get(username='ann'))")


class TestPermissions:
    def test_a_member_is_sent_what_others_are_not(
        self, project_of: Make, serve: Serve, sql: psycopg.Connection
    ) -> None:
        project, chat = project_of("permissions"), Chat(sql)
        assert "no issues" in project.manage("check")
        (ann, as_ann), (bob, as_bob) = project.users.values()
        shared, of_bob = chat.conversation(ann, bob), chat.conversation(bob)
        server = serve(project)
        with Client(server, cookie=as_ann) as of_ann, Client(server, cookie=as_bob) as his:
            everything = of_ann.acknowledged().subscribe("subscription { messages { text } }")
            of_his = his.acknowledged().subscribe("subscription { messages { text } }")
            of_ann.live(everything, lambda text: chat.say(shared, bob, text))
            his.live(of_his, lambda text: chat.say(of_bob, bob, text))
            chat.say(of_bob, bob, "secret")
            chat.say(shared, bob, "hello")
            assert [his.data(of_his)["text"], his.data(of_his)["text"]] == ["secret", "hello"]
            assert of_ann.data(everything)["text"] == "hello"

    def test_a_subscription_is_refused_and_ends_with_the_membership(
        self, project_of: Make, serve: Serve, sql: psycopg.Connection
    ) -> None:
        project, chat = project_of("permissions"), Chat(sql)
        ann, cookie = project.users["ann"]
        talk, other = chat.conversation(ann), chat.conversation()
        ask = "subscription ($conversation: Int!) { messagesOf(conversation: $conversation) { text } }"
        with Client(serve(project), cookie=cookie) as client:
            refused = client.acknowledged().subscribe(ask, conversation=other)
            assert client.result(refused)["errors"][0]["message"] == "you are no member of this conversation"
            number = client.subscribe(ask, conversation=talk)
            client.live(number, lambda text: chat.say(talk, ann, text))
            chat.say(talk, ann, "the last one")
            assert client.data(number) == {"text": "the last one"}
            sql.execute("delete from chat_membership")
            assert client.result(number)["errors"][0]["message"] == "you are no member of this conversation"

    def test_a_deletion_is_told_to_members_only(self, project_of: Make, serve: Serve, sql: psycopg.Connection) -> None:
        project, chat = project_of("permissions"), Chat(sql)
        (ann, as_ann), (bob, as_bob) = project.users.values()
        talk, of_bob = chat.conversation(ann), chat.conversation(bob)
        ask = "subscription { messageChanges { transition pk message { text } } }"
        server = serve(project)
        with Client(server, cookie=as_ann) as hers, Client(server, cookie=as_bob) as his:
            of_hers, of_his = hers.acknowledged().subscribe(ask), his.acknowledged().subscribe(ask)
            hers.live(of_hers, lambda text: chat.say(talk, ann, text))
            his.live(of_his, lambda text: chat.say(of_bob, bob, text))
            key = chat.say(talk, ann, "hello")
            sql.execute("delete from chat_message where id = %s", [key])
            chat.say(of_bob, bob, "the end")
            # Read together, the row may be gone when it is asked for: then its coming is not told either.
            told = [hers.data(of_hers)]
            while told[-1]["transition"] != "LEAVE":
                told.append(hers.data(of_hers))
            assert told[-1] == {"transition": "LEAVE", "pk": str(key), "message": None}
            assert his.data(of_his)["message"] == {"text": "the end"}


class TestFilters:
    def test_only_what_matches_arrives_and_what_left_is_told(
        self, project_of: Make, serve: Serve, sql: psycopg.Connection
    ) -> None:
        project, chat = project_of("filters"), Chat(sql)
        assert "no issues" in project.manage("check")
        ann, cookie = project.users["ann"]
        wanted, other = chat.conversation(ann), chat.conversation(ann)
        with Client(serve(project), cookie=cookie) as client:
            messages = client.acknowledged().subscribe(
                "subscription ($all: [Int!]!) { messages(conversations: $all) { text } }", all=[wanted]
            )
            client.live(messages, lambda text: chat.say(wanted, ann, text))
            chat.say(other, ann, "elsewhere")
            chat.say(wanted, ann, "a draft", draft=True)
            chat.say(wanted, ann, "hello")
            assert client.data(messages) == {"text": "hello"}

            jobs = client.subscribe(
                'subscription { jobChanges(status: "open") { transition changedFields job { name } } }'
            )
            insert = "insert into chat_job (name, status, priority, progress) values (%s, %s, %s, 0)"
            client.live(jobs, lambda text: sql.execute(insert, [text, "open", 1]))
            for row in (["low", "open", 0], ["busy", "running", 5], ["print", "open", 5]):
                sql.execute(insert, row)
            assert client.data(jobs) == {
                "transition": "ENTER",
                "changedFields": ["priority", "status"],
                "job": {"name": "print"},
            }
            sql.execute("update chat_job set progress = 50 where name = 'print'")
            sql.execute("update chat_job set priority = 6 where name = 'print'")
            assert client.data(jobs) == {
                "transition": "CHANGE",
                "changedFields": ["priority"],
                "job": {"name": "print"},
            }
            sql.execute("update chat_job set status = 'done' where name = 'print'")
            assert client.data(jobs)["transition"] == "LEAVE"

    def test_what_the_watch_leaves_out_is_not_in_the_journal(self, project_of: Make, sql: psycopg.Connection) -> None:
        project_of("filters")
        sql.execute("insert into chat_job (name, status, priority, progress) values ('a', 'open', -1, 0)")
        sql.execute("update chat_job set priority = -2")
        assert sql.execute("select count(*) from pgnotify_gql.journal").fetchone() == (0,)
        sql.execute("update chat_job set priority = 3")
        sql.execute("update chat_job set progress = 3")
        assert sql.execute("select kind from pgnotify_gql.journal").fetchall() == [("UPDATE",)]
