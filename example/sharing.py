"""A lock in a file, to share or to hold alone; the kernel drops it when its holder dies."""

import fcntl
import os
from pathlib import Path


class FileLock:
    """Neither way of taking it waits; each takes the place of the other. POSIX only, like the demo."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)

    def take_alone(self) -> bool:
        return self._take(fcntl.LOCK_EX)

    def share(self) -> bool:
        return self._take(fcntl.LOCK_SH)

    def release(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def _take(self, kind: int) -> bool:
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
