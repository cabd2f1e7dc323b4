"""Changes a daemon's wall clock while it runs. The monotonic clock is not changed, as in a real clock jump."""

import shutil
import subprocess
from pathlib import Path

# From Debian's package faketime; the MT variant is for programs with threads.
LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
# Adds functions that faketime does not cover.
WAITS = Path(__file__).resolve().parent / "wall_clock_waits.c"
SHARED_MEMORY = Path("/dev/shm")


def missing():
    """Tells the user what to install for this fault; None if nothing is missing."""
    if LIBRARY is None:
        return "install faketime (`make tools`; Debian: faketime)"
    return None if shutil.which("cc") else "install a C compiler (Debian: build-essential)"


class Clock:
    def __init__(self, file):
        self.file = file
        self.waits = file.with_suffix(".so")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", self.waits, WAITS], check=True)
        self.shift("+0d")

    def shift(self, by):
        """Sets the clock's offset, such as `+1d`. It takes effect within a second, also for daemons started later."""
        part = self.file.with_suffix(".part")
        part.write_text(f"{by}\n")
        # Replace the file atomically, because the library may read it at any time.
        part.replace(self.file)

    def environment(self):
        return {
            "LD_PRELOAD": f"{self.waits}:{LIBRARY}",
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    @staticmethod
    def forget(pid):
        """Deletes the shared memory that the library leaves behind when its process is killed."""
        for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
            (SHARED_MEMORY / name).unlink(missing_ok=True)
