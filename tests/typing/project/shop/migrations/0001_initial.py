"""Operations beside Django's own."""

from django.db import migrations

from pgnotify_gql.capture import Kind
from pgnotify_gql.capture.operations import InstallTriggers, RunTriggerSql, UninstallTriggers


class Migration(migrations.Migration):
    dependencies = [("pgnotify_gql", "0001_journal")]
    operations = [
        InstallTriggers("order", columns=["status"], kinds=[Kind.UPDATE], update_of=["status"]),
        InstallTriggers("product"),
        UninstallTriggers("line", columns="__all__", exclude=["order"]),
        RunTriggerSql("shop.line", '"shop_line"', forward=[], backward=[]),
    ]
