"""Django for a process that measures: the settings of the example, and no database yet."""

import os


def set_up() -> None:
    """Set Django up, before anything is imported that needs it; a server's database comes in later."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "example.settings"
    os.environ["DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/no_database_was_made"
    for variable in ("REDIS_URL", "PGNOTIFY_INLINE"):
        os.environ.pop(variable, None)
    import django

    django.setup()
