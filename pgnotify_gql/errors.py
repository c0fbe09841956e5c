"""
The tree of errors.

Each class is one situation an application or an operator can react to; its message says what happened and what to
do.  Errors of the driver are wrapped where they are met, with ``from``.
"""

from __future__ import annotations

from traceback import walk_tb


class PgnotifyGqlError(Exception):
    """Base of everything this package raises on purpose."""

    @property
    def filename(self) -> str | None:
        """
        The file that was being imported when it was raised, if one was.

        Django's autoreloader asks for it: it then watches the file with the mistake, and not ours, which has raised.
        """
        importing = [frame.f_code for frame, _ in walk_tb(self.__traceback__) if frame.f_code.co_name == "<module>"]
        return importing[-1].co_filename if importing else None


class ConfigurationError(PgnotifyGqlError):
    """A setting is wrong; nothing was started."""


class WatchError(PgnotifyGqlError):
    """A watch cannot be captured as declared."""


class TableMissingError(WatchError):
    """The table of a watched model, or a column of it, is not there (yet)."""


class TopicError(PgnotifyGqlError):
    """A subscription waits for something that no watch captures."""


class TopicValueError(TopicError):
    """A topic compares a column with what is no value of it; clients are told, since it may have come from them."""


class JournalMissingError(PgnotifyGqlError):
    """The journal's tables are not in this database."""

    def __init__(self, database: str) -> None:
        super().__init__(
            f"database '{database}' has no journal: run `manage.py migrate pgnotify_gql --database {database}` first"
        )


class ReadOnlyDatabaseError(PgnotifyGqlError):
    """The database is a replica, in which nothing can be installed."""

    def __init__(self, database: str) -> None:
        super().__init__(
            f"database '{database}' is a read-only replica: its triggers are those of its primary, install them there"
        )


class InstallError(PgnotifyGqlError):
    """The triggers of a table could not be installed; the table is as it was."""


class CursorError(PgnotifyGqlError):
    """A cursor is not one of ours."""


class CursorTooOldError(PgnotifyGqlError):
    """The journal no longer holds everything after this cursor."""


def one_line(error: BaseException | None) -> str:
    """Return the message of an error, libpq's have several lines, as a sentence within another one."""
    return " ".join(str(error).split())
