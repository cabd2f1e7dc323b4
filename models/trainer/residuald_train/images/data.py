"""Lists the images of a folder: which are normal, where masks are, and which images show the same object."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import TrainerError
from . import csv_file

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageFile:
    path: Path
    label: str  # the class; "good" for normal ones
    mask: Path | None = None
    group: str = ""  # images of one group show the same object and stay on one side of every split

    @property
    def normal(self):
        return self.label == "good"


def read_folder(folder, normal=None, groups=None):
    """Folder -> (normal ImageFiles to train on, labelled ImageFiles to measure on). Raises TrainerError.

    There are three layouts. Anomalib's is train/good, test/CLASS and ground_truth/CLASS/STEM_mask.png. With `normal`,
    there is one folder for each class, `normal` names the normal one, and masks are beside the images as STEM.png.
    Otherwise the folder holds only normal images.

    `groups`: a CSV file with the columns image (path below the folder) and tile.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TrainerError(f"{folder} is not a folder")
    group_of = read_groups(groups) if groups else {}

    def listed(below, label, mask_of=None, skip=()):
        out = []
        for path in sorted(p for p in below.rglob("*") if is_image(p, below) and p not in skip):
            name = path.relative_to(folder).as_posix()
            if groups and name not in group_of:
                raise TrainerError(f"{groups} has no line for the image {name}")
            mask = mask_of(path) if mask_of else None
            out.append(ImageFile(path, label, mask if mask and mask.exists() else None, group_of.get(name, name)))
        return out

    if normal:
        if not (folder / normal).is_dir():
            raise TrainerError(f"--normal {normal}: there is no folder {folder / normal}")
        test = []
        for below in sorted(
            p for p in folder.iterdir() if p.is_dir() and p.name != normal and not p.name.startswith(".")
        ):
            masks = {p for p in below.rglob("*.png") if p.with_suffix(".jpg").exists()}
            test += listed(below, below.name, lambda p: p.with_suffix(".png"), masks)
        masks = {p for p in (folder / normal).rglob("*.png") if p.with_suffix(".jpg").exists()}
        train = listed(folder / normal, "good", skip=masks)
    elif (folder / "train" / "good").is_dir():
        train, test = listed(folder / "train" / "good", "good"), []
        for below in sorted(p for p in (folder / "test").glob("*") if p.is_dir()):
            truth = folder / "ground_truth" / below.name
            test += listed(below, below.name, lambda p, truth=truth: truth / f"{p.stem}_mask.png")
    else:
        train, test = listed(folder, "good"), []
    if not train:
        raise TrainerError(f"{folder} contains no images ({', '.join(sorted(SUFFIXES))})")
    return train, test


def is_image(path, below):
    """Whether a path below a folder is an image. Hidden files and folders, such as macOS' ._000.png, are not."""
    hidden = any(part.startswith(".") for part in path.relative_to(below).parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def read_groups(path):
    """A CSV file with the columns image and tile -> {image: tile}. Raises TrainerError if a column is missing."""
    return {image: tile for _, (image, tile) in csv_file.rows(path, ("image", "tile"))}


def split(images, share, seed):
    """Splits ImageFiles at random by whole groups -> (the rest, about `share` of them). Each side has at least a group.

    Raises TrainerError if there is only one group.
    """
    names = sorted({p.group for p in images})
    if len(names) < 2:
        raise TrainerError("all images belong to one group, but training and calibration need a group each")
    order = np.random.default_rng(seed).permutation(names).tolist()
    taken, count = set(), 0
    for name in order[: len(names) - 1]:
        if taken and count >= share * len(images):
            break
        taken.add(name)
        count += sum(p.group == name for p in images)
    return [p for p in images if p.group not in taken], [p for p in images if p.group in taken]


def develop_report_groups(images, seed=0):
    """ImageFiles of all classes -> (groups to choose settings on, groups to report on), each half of every class."""
    kind = {}
    for p in sorted(images, key=lambda p: (p.normal, p.label)):  # a group with a defect counts as that class
        kind.setdefault(p.group, p.label)
    rng, sides = np.random.default_rng(seed), (set(), set())
    for label in sorted(set(kind.values())):
        for i, name in enumerate(rng.permutation(sorted(g for g in kind if kind[g] == label)).tolist()):
            sides[i % 2].add(name)
    return sides


def fingerprint(images):
    """The SHA-256 over names and contents of all images in hex, for the manifest."""
    total = hashlib.sha256()
    for p in images:
        total.update(f"{p.path.name}\0".encode() + hashlib.sha256(p.path.read_bytes()).digest())
    return total.hexdigest()
