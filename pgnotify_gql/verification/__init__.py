"""
Verification: a proof to run, ``manage.py verify_delivery``.

Writers change a table of its own, and note each change in a ledger, in the same transaction: the ledger is the truth.
Server processes and listeners of its own, with the site's settings, serve subscribers with real sockets, while faults
are injected into what was started here, and into nothing else.  The judge compares what each subscriber was sent with
the ledger.

Guarantees that nothing is left behind: tables go and processes end when the run ends, whatever ends it; a run that was
killed is tidied up after by the next one.

Does not look at the site's own models, triggers, servers and listeners.  Nothing here is imported by the rest of the
package.
"""
