"""Routers of the example's models over two databases; imported by processes of their own, so nothing else is here."""

from typing import Any

from django.db.models import Model

CONVERSATION = "conversation"


class ConversationsInSecond:
    """Conversations are in the database "second", everything else is in "default"."""

    def db_for_write(self, model: type[Model], **hints: Any) -> str:
        return "second" if model._meta.model_name == CONVERSATION else "default"

    def db_for_read(self, model: type[Model], **hints: Any) -> str:
        return self.db_for_write(model)

    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **hints: Any) -> bool:
        return app_label == "pgnotify_gql" or db == ("second" if model_name == CONVERSATION else "default")


class TablesInBoth(ConversationsInSecond):
    """Writes go to the same databases, but both have every table."""

    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **hints: Any) -> bool:
        return True
