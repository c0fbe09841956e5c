"""Load by pgbench, which comes with PostgreSQL: it costs less than the database it drives."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.databases import Database

UPDATE = """
\\set id random(1, {rows})
update {table} set version = version + 1 where id = :id;
"""

PATIENCE = 60
"""Seconds that it may take longer than it was told to."""


def update_script(table: str, rows: int) -> str:
    """Return a transaction that updates one row, whichever."""
    return UPDATE.format(table=table, rows=rows)


def transactions_per_second(database: Database, script: str, clients: int, seconds: float) -> float:
    """Run a transaction over and over, prepared, and return how often in a second; connecting does not count."""
    with running(database, script, clients, seconds) as process:
        output = _output(process, seconds)
    found = re.search(r"^tps = ([0-9.]+)", output, re.MULTILINE)
    if found is None or "number of failed transactions: 0 " not in output:
        raise RuntimeError(f"pgbench failed: {output[-1000:]}")
    return float(found[1])


@contextmanager
def running(database: Database, script: str, clients: int, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Let pgbench run beside the block, and end it with the block at the latest."""
    program = database.server.bin_path / "pgbench"
    threads = min(clients, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="pgbench-") as directory:
        file = Path(directory) / "script.sql"
        file.write_text(script)
        command = [
            str(program), "--no-vacuum", "--protocol=prepared", f"--file={file}", f"--client={clients}",
            f"--jobs={threads}", f"--time={seconds:g}", database.conninfo,
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _output(process: subprocess.Popen[str], seconds: float) -> str:
    output, _ = process.communicate(timeout=seconds + PATIENCE)
    return output
