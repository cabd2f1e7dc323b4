"""A daemon's wall clock that jumps while the daemon runs. Its monotonic clock is left alone, as by a real jump."""

from pathlib import Path

# Of Debian's package faketime; MT is for programs with threads.
LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
SHARED_MEMORY = Path("/dev/shm")


def missing():
    """What the fault cannot be done without, in words for the person."""
    return None if LIBRARY else "install faketime (`make tools`; Debian: faketime)"


class Clock:
    def __init__(self, file):
        self.file = file
        self.shift("+0d")

    def shift(self, by):
        """Off by `+1d`, for instance, from within a second on, and for the daemons that start later as well."""
        part = self.file.with_suffix(".part")
        part.write_text(f"{by}\n")
        # In one step: the library may read it at any time.
        part.replace(self.file)

    def environment(self):
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    @staticmethod
    def forget(pid):
        """Deletes what the library leaves behind when its process is killed."""
        for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
            (SHARED_MEMORY / name).unlink(missing_ok=True)
