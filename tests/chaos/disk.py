"""A disk that can be filled up: a tmpfs, which only root may mount."""

import os
import subprocess
import tempfile
from pathlib import Path

ROOM = "50%"  # largest size as a share of memory; only written data takes memory


def missing():
    """Tells the user why this fault is impossible here; None if it is possible."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            SmallDisk(Path(folder) / "disk").unmount()
        except (OSError, subprocess.CalledProcessError):
            return "it needs to mount a tmpfs; run it as root on a machine that allows mounting"
    return None


def unmount_left_over(folder):
    """Unmounts disks that a killed run has left mounted."""
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
        """Shrinks the disk to its content, so that it is full. False if the content grew meanwhile; then try again."""
        now = os.statvfs(self.folder)
        used = (now.f_blocks - now.f_bfree) * now.f_frsize
        cut = subprocess.run(["mount", "-o", f"remount,size={used}", self.folder], stderr=subprocess.DEVNULL)
        return cut.returncode == 0 and os.statvfs(self.folder).f_bfree == 0

    def make_room(self):
        subprocess.run(["mount", "-o", f"remount,size={ROOM}", self.folder], check=True)

    def unmount(self):
        subprocess.run(["umount", "-l", self.folder], check=True)
