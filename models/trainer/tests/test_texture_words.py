"""Tests of the words that models/textures learns its paraphrases from."""

import csv
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the examples need scikit-image")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import texture_words as words
import textures

STRANGERS = Path(words.__file__).with_name("texture_strangers.csv")


def test_captions_are_those_of_training_and_each_has_paraphrases():
    wanted = set()
    for name, tints in textures.TINTS.items():
        materials = [form.format(c=tint) for form in textures.WORDS[name] for tint in (*tints, "")]
        shades = [*textures.WORDS["bright"], *textures.WORDS["dark"]]
        defects = [form.format(s=s) for name in textures.DEFECTS for form in textures.WORDS[name] for s in shades]
        wanted |= {" ".join(m.split()) for m in materials}
        pairs = itertools.product(materials, defects, textures.WITH)
        wanted |= {" ".join(form.format(m=m, d=d).split()) for m, d, form in pairs}
    pairs = words.pairs(2000, np.random.default_rng(0))
    captions = {caption for caption, _ in pairs}
    assert len(captions) == 84
    assert captions <= wanted
    assert len({text for _, text in pairs}) == 2000
    with open(STRANGERS, newline="") as f:
        assert {row["caption"] for row in csv.DictReader(f)} <= captions


def test_phrases_have_the_places_that_they_need_and_are_many():
    needed = {"sentence": {"{m}"}, "no": {"{m}"}, "with": {"{m}", "{d}"}, "frame": {"{x}"}}
    allowed = {"material": {"{c}"}, "defect": {"{s}"}, "colour": set(), "shade": set(), "adjective": set()}
    for name, phrases in words.PHRASES.items():
        first = name.split()[0]
        for phrase in phrases:
            found = set(re.findall(r"{.?}", phrase))
            assert found == needed[first] if first in needed else found <= allowed[first], phrase
        assert len(set(phrases)) == len(phrases) >= {"material": 250, "with": 300, "no": 150}.get(first, 30), name
    for defect in textures.DEFECTS:
        assert sum(len(phrases) for name, phrases in words.PHRASES.items() if defect in name.split()) >= 250


@pytest.mark.parametrize("phrase", ["old {c} turf", "old {c} turfs", "smudged spot", "{m} damage by {d}"])
def test_a_phrase_of_the_test_and_its_inflections_are_refused(phrase):
    words.check([phrase for phrases in words.PHRASES.values() for phrase in phrases])
    with pytest.raises(ValueError, match=rf"{re.escape(repr(phrase))} has .* in it, which is for the test"):
        words.check(["lawn", phrase])
