"""
Run a program as if the optional packages were not installed: `python -m tests.support.without_extras PROGRAM ...`.

The program is a file that ends in `.py`, or the name of a module.
"""

import runpy
import sys
from typing import Any

BLOCKED = ("prometheus_client", "opentelemetry")

if __name__ == "__main__":
    modules: dict[str, Any] = sys.modules
    for name in BLOCKED:
        # Whoever imports it is told that it is not there.
        modules[name] = None
    del sys.argv[0]
    program = sys.argv[0]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
