"""A daemon's wall clock that jumps while the daemon runs. Its monotonic clock is left alone, as by a real jump."""

import shutil
import subprocess
from pathlib import Path

# Of Debian's package faketime; MT is for programs with threads.
LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
# What that lacks.
WAITS = Path(__file__).resolve().parent / "wall_clock_waits.c"
SHARED_MEMORY = Path("/dev/shm")


def missing():
    """What the fault cannot be done without, in words for the person."""
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
        """Off by `+1d`, for instance, from within a second on, and for the daemons that start later as well."""
        part = self.file.with_suffix(".part")
        part.write_text(f"{by}\n")
        # In one step: the library may read it at any time.
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
        """Deletes what the library leaves behind when its process is killed."""
        for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
            (SHARED_MEMORY / name).unlink(missing_ok=True)
