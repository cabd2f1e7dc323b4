"""A disk that can be full: a tmpfs, which only root may mount."""

import os
import subprocess
import tempfile
from pathlib import Path

ROOM = "50%"  # of the memory, at most; only what is written takes any


def missing():
    """What the fault cannot be done without, in words for the person."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            SmallDisk(Path(folder) / "disk").unmount()
        except (OSError, subprocess.CalledProcessError):
            return "it mounts a tmpfs: run it as root, where mounting is allowed"
    return None


def unmount_left_over(folder):
    """What a run that was killed has left mounted."""
    for disk in folder.glob("disk-*"):
        if disk.is_mount():
            subprocess.run(["umount", "-l", disk], check=True)


class SmallDisk:
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "chaos", folder], check=True, stderr=subprocess.PIPE
        )

    def fill(self):
        """Cuts it to what it holds. False if that grew meanwhile: try again."""
        now = os.statvfs(self.folder)
        used = (now.f_blocks - now.f_bfree) * now.f_frsize
        cut = subprocess.run(["mount", "-o", f"remount,size={used}", self.folder], stderr=subprocess.DEVNULL)
        return cut.returncode == 0 and os.statvfs(self.folder).f_bfree == 0

    def make_room(self):
        subprocess.run(["mount", "-o", f"remount,size={ROOM}", self.folder], check=True)

    def unmount(self):
        subprocess.run(["umount", "-l", self.folder], check=True)
