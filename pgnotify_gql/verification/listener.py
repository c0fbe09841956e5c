"""``python -m pgnotify_gql.verification.listener``: ``manage.py run_listener`` as a process of a run."""

from __future__ import annotations

from .child import prepare

if __name__ == "__main__":
    task = prepare()
    from django.core.management import call_command

    call_command("run_listener", databases=[task.database], http="")
