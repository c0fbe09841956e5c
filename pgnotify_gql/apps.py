"""The Django application: it has a journal to migrate and checks to run, and patches nothing."""

from django.apps import AppConfig


class PgnotifyGqlConfig(AppConfig):
    """Registers the system checks."""

    name = "pgnotify_gql"
    verbose_name = "Change feed"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks  # noqa: F401  (registers them)
