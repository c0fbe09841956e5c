"""
The clients that people use, as they are published: what raw SQL writes reaches them, also after their server restarted.

A client runs in a process of its own, a script of `drivers` on Node or Python, and comes back by its own logic alone.
"""
