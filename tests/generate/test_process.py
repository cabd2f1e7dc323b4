"""The page that explains the diffusion process: its commands run, and its pictures can be drawn."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import RESIDUALD, ROOT

PICTURES = ["denoised", "detected", "forward", "learned", "reverse"]


def test_the_commands_of_the_page_run_and_make_its_pictures(tmp_path):
    programs = [Path(RESIDUALD).resolve().parent, Path(sys.executable).parent]
    path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    command = [sys.executable, ROOT / "docs/process.py", "--out", tmp_path, "--steps", "200"]
    done = subprocess.run(
        list(map(str, command)), env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(picture.stem for picture in tmp_path.glob("*.png")) == PICTURES
    assert sorted(picture.stem for picture in (ROOT / "docs/src/process").glob("*.png")) == PICTURES
