"""How good drawn textures are: do they show what the words say, and are they like the photographs without being copies.

python examples/drawn_textures.py draw models/textures drawn --residuald target/release/residuald
python examples/drawn_textures.py measure drawn
python examples/drawn_textures.py time models/textures --residuald target/release/residuald

Names: a network that never saw a drawn image (texture_classifier.py) names texture and defect, for captions with the
words of training and for paraphrases without them. Distance: the kernel inception distance (KID) in the features of
that network, between quarters of images without defect and crops of the photographs' right third, which training did
not use. Copies: the highest correlation of the image's middle with any place of the photographs' left part.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import texture_classifier as classifier
from PIL import Image
from surface import EDGE, TEXTURES
from texture_classifier import HEADS, NONE
from texture_measures import gaussian_texture, kid, likeness
from textures import PARAPHRASED_PLAIN, PARAPHRASED_WITH, PARAPHRASES, TINTS, WORDS, caption

CAPTIONS, EACH = 2, 4  # captions of each texture with each defect or none, and images of each caption
PLAIN_EACH = 3  # images of each texture and colour, for the distance
PATCH = 128  # pixels on a side of what is compared
REAL = 300  # crops of each kind that the drawn images are compared with
COPY = 0.9  # correlation from which a patch counts as a copy
STEPS = 5, 10, 15, 20
TIMED = 4  # images that are drawn to take the time


def prompts(seed=2000):
    """-> [{prompt, kind, texture, defect, colour, count}]. Kinds: known, paraphrase, plain. Colour: may be None."""
    rng, found = np.random.default_rng(seed), []
    unknown = {"words": PARAPHRASES, "plain": PARAPHRASED_PLAIN, "with_defect": PARAPHRASED_WITH}
    for kind, words in (("known", {}), ("paraphrase", unknown)):
        for texture in TEXTURES:
            for defect in HEADS["defect"]:
                for _ in range(CAPTIONS):
                    tint = list(TINTS[texture])[rng.integers(len(TINTS[texture]))]
                    shade = "bright" if rng.random() < 0.5 else "dark"
                    text = caption(texture, tint, None if defect == NONE else defect, shade, rng, **words)
                    one = {"prompt": text, "kind": kind, "texture": texture, "defect": defect, "count": EACH}
                    found.append(one | {"colour": tint if tint in text.split() else None})
    for texture in TEXTURES:
        for tint in TINTS[texture]:
            one = {"prompt": WORDS[texture][0].format(c=tint), "kind": "plain", "texture": texture}
            found.append(one | {"defect": NONE, "colour": tint, "count": PLAIN_EACH})
    return found


def draw(args):
    """Draws all prompts into folders 000, 001, …; those that are complete are kept."""
    args.drawn.mkdir(parents=True, exist_ok=True)
    everything = prompts()
    (args.drawn / "prompts.json").write_text(json.dumps(everything, indent=1) + "\n")
    for i, one in enumerate(everything):
        folder = args.drawn / f"{i:03}"
        if len(list(folder.glob("*.png"))) < one["count"]:
            generate(args, one["prompt"], one["count"], folder, args.steps, seed=i)


def generate(args, prompt, count, folder, steps, seed):
    options = {"--prompt": prompt, "--count": count, "--out": folder, "--seed": seed}
    options |= {"--steps": steps, "--guidance": args.guidance}
    given = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    subprocess.run([args.residuald, "generate", args.model, "--force", *given], check=True, capture_output=True)


def read(folder):
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))]


def measure(args):
    network = classifier.load_or_train(args.drawn / "classifier.pt")
    check_classifier(network)
    drawn = []
    for i, one in enumerate(json.loads((args.drawn / "prompts.json").read_text())):
        drawn += [one | {"image": image} for image in read(args.drawn / f"{i:03}")]
    measure_names(network, drawn)
    plain = [one for one in drawn if one["kind"] == "plain"]
    photographs = classifier.photographs()
    copied = measure_copies(plain, photographs)
    measure_distance(network, plain, copied, photographs)


def check_classifier(network):
    """Says how often the network is right on real crops: new ones of the left part, and of the right third."""
    rng, textures = np.random.default_rng(classifier.SEED + 1), classifier.photographs()
    for text, size, left, right in (("left part", 256, 0, EDGE), ("right third", 160, EDGE, 1)):
        examples = [classifier.example(textures, rng, size, left, right) for _ in range(REAL)]
        found = classifier.names(network, [image for image, _ in examples])
        say_names(f"crops of the {text}", found, [wanted for _, wanted in examples])


def measure_names(network, drawn):
    for kind in ("known", "paraphrase", "plain"):
        some = [one for one in drawn if one["kind"] == kind]
        found = classifier.names(network, [one["image"] for one in some])
        say_names(f"drawn, {kind}", found, some)
        for defect in HEADS["defect"] if kind != "plain" else ():
            rows = [i for i, one in enumerate(some) if one["defect"] == defect]
            say_names(f"  {defect}", [found[i] for i in rows], [some[i] for i in rows])


def say_names(text, found, wanted):
    """Prints the share of images whose texture, defect, both, and colour (where the caption has one) are as wanted."""
    right = {head: [a[head] == b[head] for a, b in zip(found, wanted, strict=True) if b[head]] for head in HEADS}
    both = np.mean([a and b for a, b in zip(right["texture"], right["defect"], strict=True)])
    shares = ", ".join(f"{head} {100 * np.mean(yes):.1f} %" for head, yes in right.items() if yes)
    print(f"{text}, {len(found)} images: texture and defect {100 * both:.1f} % ({shares})", flush=True)


def measure_copies(plain, photographs):
    """Prints how like drawn patches and unseen patches are to the left part -> its places most like the drawn ones."""
    left = {name: image[:, : int(EDGE * image.shape[1])] for name, image in photographs.items()}
    copied, like = [], []
    for one in plain:
        found, place = likeness(middle(one["image"]).mean(2), left[one["texture"]])
        like.append(found)
        copied.append(place)
    rng, unseen = np.random.default_rng(classifier.SEED + 2), []
    for _ in range(len(plain)):
        image, about = classifier.example(photographs, rng, PATCH, EDGE, 1, NONE)
        unseen.append(likeness(image.mean(2), left[about["texture"]])[0])
    for text, values in (("drawn", like), ("right third", unseen)):
        share = 100 * np.mean(np.array(values) >= COPY)
        print(
            f"{text}, {len(values)} patches of {PATCH} pixels: correlation with the most similar place of the left "
            f"part {np.median(values):.2f} (median), {max(values):.2f} (highest); {share:.1f} % at least {COPY}"
        )
    return copied


def middle(image):
    y, x = (image.shape[0] - PATCH) // 2, (image.shape[1] - PATCH) // 2
    return image[y : y + PATCH, x : x + PATCH]


def measure_distance(network, plain, copied, photographs):
    rng = np.random.default_rng(classifier.SEED + 3)

    def crops(left, right):
        return [classifier.example(photographs, rng, PATCH, left, right, NONE)[0] for _ in range(REAL)]

    held_out, training = crops(EDGE, 1), crops(0, EDGE)
    kinds = {
        "drawn": [patch for one in plain for patch in quarters(one["image"])],
        "crops of the left part": training,
        "the left part's places most like the drawn images": [
            classifier.tinted(Image.fromarray(place), TINTS[one["texture"]][one["colour"]])
            for place, one in zip(copied, plain, strict=True)
        ],
        "textures of random phase": [gaussian_texture(image, rng) for image in training],
        "crops of the right third": crops(EDGE, 1),
    }
    real = classifier.features(network, held_out)
    for text, images in kinds.items():
        mean, deviation = kid(classifier.features(network, [np.asarray(image) for image in images]), real)
        print(f"{text}, {len(images)} patches: KID to the right third {mean:.0f} (deviation {deviation:.0f}) / 1000")


def quarters(image):
    return [image[y : y + PATCH, x : x + PATCH] for y in (0, PATCH) for x in (0, PATCH)]


def take_time(args):
    """Prints what an image costs by steps, without the start, which is that of one image less."""
    for steps in STEPS:
        wall, busy = (np.array(cost(args, TIMED + 1, steps)) - cost(args, 1, steps)) / TIMED
        print(f"{steps} steps: {wall:.2f} s an image, {busy:.2f} s of processor time", flush=True)


def cost(args, count, steps):
    """-> (seconds, seconds of processor time) of drawing `count` images."""

    def busy():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    began, before = time.monotonic(), busy()
    with tempfile.TemporaryDirectory() as folder:
        generate(args, "gray gravel with a dark stain", count, Path(folder), steps, seed=0)
    return time.monotonic() - began, busy() - before


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = p.add_subparsers(required=True)
    for name, run in (("draw", draw), ("measure", measure), ("time", take_time)):
        verb = verbs.add_parser(name)
        verb.set_defaults(run=run)
        if name != "measure":
            verb.add_argument("model", type=Path, help="the pipeline's folder")
            verb.add_argument("--residuald", default="residuald", metavar="PATH", help="the program")
            verb.add_argument("--guidance", type=float, help="default: the pipeline's own")
        if name != "time":
            verb.add_argument("drawn", type=Path, help="the folder of drawn images")
        if name == "draw":
            verb.add_argument("--steps", type=int, help="default: the pipeline's own")
    args = p.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
