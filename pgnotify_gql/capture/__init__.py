"""
Capture: what the database emits.

Guarantees that every committed INSERT, UPDATE, DELETE and TRUNCATE of a watched table, whoever made it, is a row of
the journal, written in the writer's own transaction: it is there exactly if the change is.  Needs no right of the
writer beyond the table's.

Does not guarantee that anybody reads it: that is the listener's part.  Does not see tables without triggers;
``install_triggers --check`` and the system checks name those.  Leaves out what is written inside `suppress_changes`.

On failure nothing is half done: installing is one transaction a table, with a short lock timeout.
"""

from . import installed  # noqa: F401  (registers its check)
from .context import change_context, suppress_changes
from .kinds import Kind
from .registry import notify_on_model_changes

__all__ = ["Kind", "change_context", "notify_on_model_changes", "suppress_changes"]
