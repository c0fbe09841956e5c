"""
The watched model: a table of the verification's own.

It lives in a registry of its own, so that neither ``makemigrations`` nor anything else in the process knows of it.
"""

from __future__ import annotations

from django.apps.registry import Apps
from django.db import models

from ..capture.registry import make_watch

BUCKETS = 4
"""Values of the column that topics have conditions on; statements of `writes` count by it as well."""


class VerificationRow(models.Model):
    """A row with a version, by which each of its changes is known, in a bucket, which changes may move it out of."""

    key: models.BigIntegerField[int, int] = models.BigIntegerField(primary_key=True)
    version: models.BigIntegerField[int, int] = models.BigIntegerField()
    bucket: models.IntegerField[int, int] = models.IntegerField()

    class Meta:
        app_label = "pgnotify_gql"
        apps = Apps()
        managed = False
        db_table = '"pgnotify_gql"."verification"'

    def __str__(self) -> str:
        return f"{self.key} version {self.version}"


watch = make_watch(VerificationRow, columns=["version", "bucket"])
"""The watch, which a server process registers, and nobody else."""
