"""The journal, on every PostgreSQL database that is migrated; others are left alone."""

from typing import Any

from django.db import migrations

from pgnotify_gql.capture.templates import read


def create(apps: Any, schema_editor: Any) -> None:
    _execute(schema_editor, "journal_v1.sql")


def drop(apps: Any, schema_editor: Any) -> None:
    _execute(schema_editor, "journal_v1_drop.sql")


def _execute(schema_editor: Any, template: str) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(read(template), params=None)


class Migration(migrations.Migration):
    initial = True
    operations = [migrations.RunPython(create, drop, elidable=False)]
