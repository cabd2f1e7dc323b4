"""Paraphrases for the captions of models/textures, from the phrases and templates of texture_words.txt.

None has words of PARAPHRASES of textures.py in it, which is the test.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import textures
from surface import TEXTURES
from textures import DEFECTS, PARAPHRASED_PLAIN, PARAPHRASED_WITH, PARAPHRASES, TINTS, caption

WORDS = Path(__file__).with_suffix(".txt")
PAIRS = 14000
KNOWN = 0.15  # share of the pairs whose paraphrase is a caption as in training
NAMED, ADJECTIVE = 0.7, 0.12  # shares of the defects that are a noun and an adjective; the rest are sentences
IMPLIED = 0.3  # share of the nouns that imply their shade
FRAMED, BARE, TYPO = 0.5, 0.15, 0.08  # shares in a frame, without any article and with a wrong letter
USUAL = {"scratch": "bright", "stain": "dark"}  # the shade of a defect whose words name none
# What the denoiser is told, in the words that it draws best (160 pixels, another classifier than that of the results).
DRAWN = {"scratch": "a {s} scratch", "stain": "a {s} stain", "hole": "a small black hole", "smear": "a smear"}
MOST_WORDS = 17  # the text encoder takes 24 tokens
ARTICLES = "a", "an", "the"
ENDINGS = "ing", "ed", "es", "s", "y", "e"


def read_words(path):
    """-> {name of a section: its phrases}."""
    sections = {}
    for block in path.read_text(encoding="utf-8").split("\n[")[1:]:
        name, text = block.split("]", 1)
        sections[name] = tuple(" ".join(phrase.split()) for phrase in text.split("|"))
    return sections


PHRASES = read_words(WORDS)


def stem(word):
    ending = next((e for e in ENDINGS if word.endswith(e) and len(word) > len(e) + 2), "")
    return word.removesuffix(ending)


def core(phrase):
    """The stems of a phrase's words, without articles, slots and punctuation, with a space at both ends."""
    for slot in ("{c}", "{s}", "{m}", "{d}", "{x}"):
        phrase = phrase.replace(slot, " ")
    words = "".join(letter if letter.isalnum() else " " for letter in phrase.lower()).split()
    return f" {' '.join(stem(word) for word in words if word not in ARTICLES)} "


def check(phrases):
    """Raises ValueError if one of the phrases has a phrase of the test in it, or an inflection of it."""
    test = {core(phrase): phrase for phrases in PARAPHRASES.values() for phrase in phrases}
    test |= {core(phrase): phrase for phrase in (*PARAPHRASED_PLAIN, *PARAPHRASED_WITH)}
    for phrase in phrases:
        if found := [test[one] for one in test if one in core(phrase)]:
            raise ValueError(f"{phrase!r} has {found[0]!r} in it, which is for the test")


def pick(options, rng):
    return options[rng.integers(len(options))]


def target(texture, tint, defect, shade):
    """The caption that the denoiser is given for a paraphrase. `tint` and `defect` may be None."""
    m = textures.WORDS[texture][0].format(c=tint or "")
    text = f"{m} with {DRAWN[defect].format(s=shade)}" if defect else m
    return " ".join(text.split())


def paraphrase(texture, tint, defect, shade, rng):
    """Random words for the `target` of the same arguments. They may leave the usual shade of a defect out."""

    def some(section):
        return pick(PHRASES[section], rng)

    def noun(phrase, slot, word):
        return with_article((phrase if slot in phrase else f"{slot} {phrase}").replace(slot, word), rng)

    m, form = noun(some(f"material {texture}"), "{c}", some(f"colour {tint}") if tint else ""), rng.random()
    shaded, usual = defect in USUAL, USUAL.get(defect, shade) == shade
    if defect is None:
        text = some("no defect").format(m=m)
    elif form < NAMED or not usual:
        implied = shaded and rng.random() < IMPLIED
        word = some(f"shade {shade}") if shaded and not implied and not (usual and rng.random() < 0.5) else ""
        name = some(f"defect {defect} {shade}" if implied else f"defect {defect}")
        text = some("with defect").format(m=m, d=noun(name, "{s}", word))
    elif form < NAMED + ADJECTIVE:
        text = f"{some(f'adjective {defect}')} {m}"
    else:
        text = some(f"sentence {defect}").format(m=m)
    if rng.random() < FRAMED:
        text = some("frame").format(x=text)
    bare = ARTICLES if rng.random() < BARE else ()
    text = " ".join(word for word in text.split() if word not in bare).replace(" ,", ",")
    return with_typo(text, rng) if rng.random() < TYPO else text


def with_article(phrase, rng):
    """Puts a random article, or none, before a phrase that has none."""
    phrase = phrase.strip()
    if phrase.startswith("the "):
        return phrase
    head = phrase.split(" of ")[0].split(" with ")[0].split(" in ")[0]
    plural = head.endswith("s") and not head.endswith("ss")
    article = ("", "", "", "the", "some") if plural else ("an" if phrase[0] in "aeiou" else "a", "the", "", "")
    return f"{pick(article, rng)} {phrase}"


def with_typo(text, rng):
    """Leaves out a letter, doubles it, or swaps it with the next."""
    i = rng.integers(1, len(text) - 2)
    a, b = text[i : i + 2]
    return text[:i] + pick((b, a + a + b, b + a), rng) + text[i + 2 :]


def pairs(count, rng):
    """-> [(caption, paraphrase)]: each defect equally often, KNOWN of them with words as in training."""
    kinds = [
        (texture, tint, defect, shade)
        for texture in TEXTURES
        for tint in (*TINTS[texture], None)
        for defect in (None, *DEFECTS)
        for shade in ("bright", "dark")  # which other defects do not have
    ]
    found = {}
    while len(found) < count:
        kind = kinds[len(found) % len(kinds)]
        text = paraphrase(*kind, rng) if rng.random() >= KNOWN else known(*kind, rng)
        if len(text.split()) <= MOST_WORDS:
            found.setdefault(text, target(*kind))
    return [(caption, text) for text, caption in found.items()]


def known(texture, tint, defect, shade, rng):
    """A random caption as in training that names the tint, if there is one."""
    while True:
        text = caption(texture, tint or "", defect, shade, rng)
        if not tint or tint in text.split():
            return text


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, required=True, help="CSV file for the pairs")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    check([phrase for phrases in PHRASES.values() for phrase in phrases])
    with open(args.out, "w", newline="") as f:
        lines = csv.writer(f)
        lines.writerow(["caption", "paraphrase"])
        lines.writerows(pairs(PAIRS, np.random.default_rng(args.seed)))


if __name__ == "__main__":
    main()
