"""The Django application: a journal to migrate, checks to run, triggers to install after ``migrate`` if so set."""

from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.autoreload import autoreload_started


class PgnotifyGqlConfig(AppConfig):
    """Registers the system checks, and what follows ``migrate``."""

    name = "pgnotify_gql"
    verbose_name = "Change feed"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks  # noqa: F401  (registers them)
        from .management.after_migrate import install_after_migrate
        from .management.reloading import watch_schema
        from .recent_errors import install as remember_errors

        remember_errors()
        # Sent for each application: for this one, it comes once.
        post_migrate.connect(install_after_migrate, sender=self)
        autoreload_started.connect(watch_schema)
