"""The guides for moving here: the old way and the new one run side by side, and differ as the page says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from tests.howto.client import WAIT, Client
from tests.howto.conftest import Make, Serve
from tests.howto.pages import HOWTO, commands
from tests.howto.project import Project
from tests.howto.test_guides import Chat
from tests.support.databases import Database
from tests.support.processes import ProjectServer, RedisServer

pytestmark = [pytest.mark.postgres("18"), pytest.mark.timeout(240)]

SHARED_LAYER = """

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {"hosts": [os.environ["REDIS_URL"]]},
    }
}
"""
"""What other processes broadcast reaches the server by it; the listener stays inside the server."""

INSTALL_TIMEOUT = 120
"""Seconds."""


def share_layer(project: Project) -> None:
    settings = project.directory / "myproject" / "settings.py"
    settings.write_text(settings.read_text() + SHARED_LAYER)


@pytest.fixture
def old_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for packages that the environment of the tests has not got."""
    return tmp_path_factory.mktemp("packages")


def pip_install(directory: Path, *requirements: str) -> None:
    """Install packages as they are, without what they require; the test is skipped where there is no registry."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(directory)]
    done = subprocess.run(
        [*command, *requirements], capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT
    )
    if done.returncode:
        pytest.skip(f"pip could not install {', '.join(requirements)}: {done.stderr.strip().splitlines()[-1]}")


@contextmanager
def broadcasts(server: ProjectServer, cookie: str) -> Iterator[ClientConnection]:
    headers = {"Cookie": cookie}
    url, origin = f"{server.ws_url}/broadcasts/", Origin(server.http_url)
    with closing(connect(url, origin=origin, additional_headers=headers, open_timeout=WAIT)) as socket:
        yield socket


class TestFromPostSave:
    def test_the_old_way_sees_saves_and_the_new_one_whatever_is_committed(
        self, project_of: Make, serve: Serve, sql: psycopg.Connection, redis_server: RedisServer
    ) -> None:
        project, chat = project_of("from-post-save", redis_url=redis_server.url), Chat(sql)
        share_layer(project)
        ann, cookie = project.users["ann"]
        talk = chat.conversation(ann)
        server = serve(project)
        with broadcasts(server, cookie) as old, Client(server, cookie=cookie) as new:
            number = new.acknowledged().subscribe("subscription { messages { text } }")
            new.live(number, lambda text: chat.say(talk, ann, text))
            project.shell(f"""
from django.contrib.auth.models import User
from django.db import transaction
import chat.signals
from chat.compare import write
from chat.models import Conversation, Message
conversation, author = Conversation.objects.get(pk={talk}), User.objects.get(pk={ann})
write(conversation, author)
try:
    with transaction.atomic():
        Message(conversation=conversation, author=author, text="rolled back").save()
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
Message(conversation=conversation, author=author, text="the end").save()
""")
            heard: list[Any] = []
            while "the end" not in heard:
                heard.append(json.loads(old.recv(WAIT))["text"])
            seen: list[Any] = []
            while "the end" not in seen:
                seen.append(new.data(number)["text"])
        assert heard == ["saved", "rolled back", "the end"]
        assert seen == ["saved", "in bulk", "updated", "the end"]


class TestFromDjangoChannelsGraphqlWs:
    def test_both_consumers_serve_the_same_field_and_the_new_one_sees_more(
        self, project_of: Make, serve: Serve, sql: psycopg.Connection, redis_server: RedisServer, old_packages: Path
    ) -> None:
        guide = "from-django-channels-graphql-ws"
        typed = [command for command in commands(HOWTO / f"{guide}.rst") if command.startswith("pip install")]
        pip_install(old_packages, *(word.strip('"') for line in typed for word in line.split()[2:] if word[0] != "-"))
        project, chat = project_of(guide, old_packages, redis_url=redis_server.url), Chat(sql)
        share_layer(project)
        ann, cookie = project.users["ann"]
        talk = chat.conversation(ann)
        ask = "subscription ($talk: Int!) { onMessage(conversation: $talk) { message { text } } }"
        server = serve(project)
        with Client(server, cookie=cookie, path="/graphql/old/") as old, Client(server, cookie=cookie) as new:
            theirs = old.acknowledged().subscribe(ask, talk=talk)
            ours = new.acknowledged().subscribe(ask, talk=talk)
            new.live(ours, lambda text: chat.say(talk, ann, text))
            prelude = f"""
from django.contrib.auth.models import User
from django.db import transaction
from chat.broadcasts import OnMessage, say
from chat.models import Conversation, Message
conversation, author = Conversation.objects.get(pk={talk}), User.objects.get(pk={ann})
"""
            project.shell(
                prelude
                + """
say(conversation, author, "said")
Message.objects.bulk_create([Message(conversation=conversation, author=author, text="in bulk")])
say(conversation, author, "the end")
"""
            )
            heard, seen = [old.data(theirs)], [new.data(ours)]
            while heard[-1]["message"]["text"] != "the end":
                heard.append(old.data(theirs))
            while seen[-1]["message"]["text"] != "the end":
                seen.append(new.data(ours))
        assert [data["message"]["text"] for data in heard] == ["said", "the end"]
        assert [data["message"]["text"] for data in seen] == ["said", "in bulk", "the end"]


class TestFromDjangoPgpubsub:
    def test_both_have_triggers_on_one_table_and_hear_of_the_same_insert(
        self, project_of: Make, serve: Serve, sql: psycopg.Connection, empty_database: Database, old_packages: Path
    ) -> None:
        pip_install(old_packages, "django-pgpubsub==1.3.1", "django-pgtrigger==4.17.0")
        project, chat = project_of("from-django-pgpubsub", old_packages), Chat(sql)
        ann, cookie = project.users["ann"]
        talk = chat.conversation(ann)
        triggers = "select tgname from pg_trigger where tgrelid = 'chat_message'::regclass and not tgisinternal"
        names = [name for (name,) in sql.execute(triggers)]
        theirs = [name for name in names if name.startswith("pgtrigger_")]
        assert len(theirs) == 1
        assert len(names) > 1
        assert "All INSTALLED" in project.manage("install_triggers")
        (channel,) = sql.execute(
            "select substring(prosrc from 'pgpubsub_[0-9a-f]+') from pg_proc where proname = %s", theirs
        ).fetchone() or (None,)
        # A session of its own: it stays locked by notifies() once that was left.
        listening = empty_database.connect()
        listening.execute(f"listen {channel}".encode())
        with Client(serve(project), cookie=cookie) as client:
            number = client.acknowledged().subscribe(
                "subscription ($talk: Int!) { written(conversation: $talk) { text } }", talk=talk
            )
            client.live(number, lambda text: chat.say(talk, ann, text))
            chat.say(talk, ann, "hello")
            assert client.data(number) == {"text": "hello"}
        heard = (json.loads(note.payload)["new"]["text"] for note in listening.notifies(timeout=WAIT))
        assert "hello" in heard
        # Beyond NOTIFY's limit the other trigger fails the write; ours alone takes it.
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="payload string too long"):
            chat.say(talk, ann, "x" * 9_000)
        project.manage("uninstall_triggers")
        assert [name for (name,) in sql.execute(triggers)] == theirs
