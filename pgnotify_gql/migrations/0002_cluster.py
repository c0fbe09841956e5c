"""The journal knows the cluster it was made in, and the era."""

from typing import Any

from django.db import migrations

from pgnotify_gql.capture.templates import read


def add(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(read("journal_cluster_v1.sql"), params=None)


class Migration(migrations.Migration):
    dependencies = [("pgnotify_gql", "0001_journal")]
    # Going back only leaves a column and a table behind, until 0001 removes everything.
    operations = [migrations.RunPython(add, migrations.RunPython.noop, elidable=False)]
