"""
The whole way, for real: programs started as users start them, rows changed by others, frames received by independent
clients.

Nothing here imports the feed: what is tested is what comes out of its processes.
"""
