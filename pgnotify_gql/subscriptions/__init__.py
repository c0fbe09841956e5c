"""
Subscriptions: what an application writes.

Guarantees that ``subscribe`` and ``next`` run as the subscriber, once for each change and cohort, in the order of the
changes; that a result is shared only within the declared audience; and that None sends nothing.

Does not decide who may see what: ``next`` does, for every change.

On failure of ``subscribe`` the operation ends with an error; on failure of ``next`` its result carries the error, and
the next change is tried again.
"""

from ..hub import Audience, Topic
from ..journal import Change
from .model_subscription import ModelSubscription
from .row_change import RowChange, Transition
from .subscription import Subscription

__all__ = ["Audience", "Change", "ModelSubscription", "RowChange", "Subscription", "Topic", "Transition"]
