"""
`python -m example.demo`: the example project from nothing.

Starts a PostgreSQL of its own (or uses DATABASE_URL), prepares it, and serves
the site with the listener inside the same process, until Ctrl-C or SIGTERM.
Everything it started is stopped then, and the exit status is 0.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psycopg

from example.embedded import EmbeddedPostgres
from example.problems import DemoError

DIRECTORY = Path(".demo")

STOP_LIMIT = 3.0
"""Seconds until an orderly stop is given up, so that even then all is over in five."""

CONNECT_LIMIT = 5
"""Seconds to wait for the server that DATABASE_URL names."""


class StopSignals:
    """
    SIGINT, SIGTERM and SIGHUP (a closed terminal): ask for the end, and see to it that it comes.

    Nothing is interrupted, because what is half done may not let itself be undone: the start looks at
    `requested` between its steps, the running server is told by `on_stop`. Whoever asks twice is not
    served faster.
    """

    def __init__(self, give_up: Callable[[], None]) -> None:
        """`give_up` is called, in another thread, when all is not over in time."""
        self.requested = False
        self.on_stop: Callable[[], None] = lambda: None
        self._give_up = give_up

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(signal.SIGHUP, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            return
        self.requested = True
        watchdog = threading.Timer(STOP_LIMIT, self._give_up)
        watchdog.daemon = True
        watchdog.start()
        self.on_stop()


def main() -> int:
    database = None if os.environ.get("DATABASE_URL") else EmbeddedPostgres(DIRECTORY)
    signals = StopSignals(partial(give_up, database))
    signals.install()
    try:
        run(database, signals)
    except DemoError as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    finally:
        if database is not None:
            database.stop()
    say("stopped")
    return 0


def give_up(database: EmbeddedPostgres | None) -> NoReturn:
    """Something does not end by itself. Nothing of value is lost: all that counts is in the database."""
    if database is not None:
        database.stop()
    os._exit(0)


def run(database: EmbeddedPostgres | None, signals: StopSignals) -> None:
    host, port = address()
    serving = import_serving()
    # Before the database: a second start by mistake must not touch it.
    serving.check_address(host, port)
    steps = (
        partial(start_embedded, database) if database else use_database_url,
        prepare_django,
        migrate,
        install_triggers,
        create_sample_data,
        partial(serve, serving, host, port, signals),
    )
    for step in steps:
        if not signals.requested:
            step()


def address() -> tuple[str, int]:
    host = os.environ.get("HOST") or "127.0.0.1"
    text = os.environ.get("PORT") or "8000"
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
        raise DemoError(f"PORT is '{text}': give a number from 1 to 65535, as in PORT=8001 make demo")
    return host, int(text)


def import_serving() -> Any:
    try:
        from example import serving
    except ImportError as error:
        raise DemoError(f"the demo needs more packages ({error}): pip install -e '.[demo]'") from error
    return serving


def use_database_url() -> None:
    try:
        psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=CONNECT_LIMIT).close()
    except psycopg.Error as error:
        raise DemoError(
            f"the database of DATABASE_URL cannot be used ({one_line(error)}): correct it or unset it"
        ) from error
    say("database", "the one of DATABASE_URL")


def start_embedded(database: EmbeddedPostgres) -> None:
    started = database.start()
    os.environ["DATABASE_URL"] = database.url
    os.environ["DEMO_PSQL"] = database.psql
    say("database", f"{'started' if started else 'was running already'}, data in {database.data}")


def prepare_django() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "example.settings"
    # One process: its own listener and an in-memory channel layer, whatever else the environment says.
    os.environ["PGNOTIFY_INLINE"] = "1"
    os.environ.pop("REDIS_URL", None)
    import django

    django.setup()


def migrate() -> None:
    command("migrate", interactive=False, verbosity=0)
    say("tables", "migrated")


def install_triggers() -> None:
    command("install_triggers")
    say("triggers", "installed")


def create_sample_data() -> None:
    say("sample data", command("sample_data"))


def command(name: str, **options: Any) -> str:
    """Run a management command and return what it says."""
    from django.core.management import CommandError, call_command
    from django.db import Error

    from pgnotify_gql.errors import PgnotifyGqlError

    output = StringIO()
    try:
        call_command(name, stdout=output, **options)
    except PgnotifyGqlError as error:
        raise DemoError(str(error)) from error
    except (Error, CommandError) as error:
        raise DemoError(f"manage.py {name} fails ({one_line(error)}): give the demo another database") from error
    return output.getvalue().strip()


def serve(serving: Any, host: str, port: int, signals: StopSignals) -> None:
    from example.asgi import application

    server = serving.WebServer(application, host, port)

    def ready() -> None:
        say_welcome(host, port)
        signals.on_stop = server.stop
        if signals.requested:
            server.stop()

    server.run(ready)


def say_welcome(host: str, port: int) -> None:
    from django.conf import settings

    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    site = f"http://{shown}:{port}"
    say("listening", f"on {host}, port {port}")
    say()
    say("Conversations", f"{site}/")
    say("GraphiQL", f"{site}/graphiql/")
    say("Monitor", f"{site}/monitor/ (as alice)")
    say("Log in as", "alice (password alice) or bob (password bob); use two browsers for both")
    cookie = settings.SESSION_COOKIE_NAME
    say("Socket", f"ws{site.removeprefix('http')}/graphql/ (a script sends the cookie {cookie} and an Origin)")
    say()
    say("Raw SQL", settings.DEMO_PSQL)
    say("Paste there", sample_insert())
    say()
    say("Ctrl-C stops everything; the data stays for the next start.")


def sample_insert() -> str:
    """Return an INSERT into the conversation that the page opens, the first by title."""
    from example.conversations.models import Membership

    membership = Membership.objects.order_by("conversation__title", "conversation", "-user").first()
    if membership is None:
        return "SELECT 'somebody has deleted all conversations'"
    return (
        "INSERT INTO conversations_message (conversation_id, author_id, text) "  # noqa: S608 - numbers
        f"VALUES ({membership.conversation_id}, {membership.user_id}, 'Hello from psql');"
    )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def say(label: str = "", text: str = "") -> None:
    # The terminal may be gone; the database still has to be stopped.
    with suppress(OSError):
        sys.stdout.write(f"{label:<14} {text}".rstrip() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
