"""Lays out three public sets of photographs in Anomalib's layout, split by object, for `residuald-train bench-images`.

python models/trainer/examples/image_domains.py --screws BSData --aliens aliens-dataset --out domains
residuald-train bench-images --data domains/screws --groups domains/screws.csv --recipe best --seeds 1

Each option names a folder:

screws: the repository 2Obe/BSData on GitHub, ball screws with pitting (CC BY-SA 4.0). The camera shows the same 15
places of the screw again and again. Trains on 8 places, tests on the other 7.
kolektor: stoy95536/KolektorSDD_Yolov8_Datasets, commutators with cracks (Tabernik et al. 2020, CC BY-NC-SA 4.0): 8
images of each object, in order. Trains on every other object, tests on the rest.
aliens: the folder of that name in aws-samples/amazon-lookout-for-vision, toys, some broken or painted (CC BY-SA 4.0).
Trains on two of three normal ones.
"""

import argparse
import csv
import json
import re
import shutil
from pathlib import Path

from PIL import Image, ImageDraw

SCREW = re.compile(r"\d+_\d+_(\d+_\d+)_crop_[12]$")  # number, time, position and angle of the place


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in DOMAINS:
        p.add_argument(f"--{name}", type=Path, metavar="DIR")
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="each set becomes a folder and a CSV of groups"
    )
    args = p.parse_args()
    for name, read in DOMAINS.items():
        if folder := getattr(args, name):
            lay_out(args.out / name, read(folder))


def screws(folder):
    """Yields (path, group, whether to train on the group, class or "good", polygons of the defect)."""
    named = [(path, match[1]) for path in sorted(folder.glob("data/*.jpg")) if (match := SCREW.match(path.stem))]
    places = sorted({place for _, place in named})
    for path, place in named:
        label = folder / "label" / f"{path.stem}.json"
        shapes = json.loads(label.read_text())["shapes"] if label.exists() else []
        kind = "pitting" if label.exists() else "good"
        yield path, place, places.index(place) % 2 == 0, kind, [shape["points"] for shape in shapes]


def kolektor(folder):
    for path in sorted(folder.glob("Datasets/images/*/*.jpg"), key=lambda path: path.stem):
        text = (folder / "Datasets" / "labels" / path.parent.name / f"{path.stem}.txt").read_text()
        w, h = Image.open(path).size
        lines = [[float(v) for v in line.split()[1:]] for line in text.splitlines()]
        polygons = [[(x * w, y * h) for x, y in zip(line[::2], line[1::2], strict=True)] for line in lines]
        group = int(path.stem) // 8
        yield path, str(group), group % 2 == 0, "crack" if lines else "good", polygons


def aliens(folder):
    for kind, name in (("normal", "good"), ("anomaly", "broken")):
        for i, path in enumerate(sorted((folder / kind).glob("*.png"))):
            yield path, f"{name}-{i}", kind == "normal" and i % 3 != 2, name, []


def lay_out(out, images):
    """Copies the images: normal ones to train/good or test/good, the others of the test to test/CLASS, with masks."""
    lines, count = [("image", "tile")], {}
    for path, group, train, kind, polygons in images:
        if train and kind != "good":
            continue  # other images of its object are trained on
        part = "train" if train and kind == "good" else "test"
        to = out / part / kind / path.name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
        lines.append((to.relative_to(out).as_posix(), group))
        count[f"{part}/{kind}"] = count.get(f"{part}/{kind}", 0) + 1
        if polygons:
            mask = Image.new("L", Image.open(path).size)
            for points in polygons:
                if len(points) > 2:
                    ImageDraw.Draw(mask).polygon([tuple(point) for point in points], fill=255)
            truth = out / "ground_truth" / kind / f"{path.stem}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            mask.save(truth)
    with open(out.with_suffix(".csv"), "w", newline="") as f:
        csv.writer(f).writerows(lines)
    print(out, count)


DOMAINS = {"screws": screws, "kolektor": kolektor, "aliens": aliens}

if __name__ == "__main__":
    main()
