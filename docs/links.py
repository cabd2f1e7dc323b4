"""An mdBook preprocessor. Pages link by the files' places in the repository, so that a code host can follow the links;
this rewrites them for the built book.

- A link to a file that a page includes as a whole leads to that page. Links in such a file are relative to the file.
- A link out of the book leads into the checkout. Its dot is escaped, or mdBook would turn .md into .html.
"""

import json
import re
import sys
from os.path import relpath
from pathlib import Path

INCLUDE = re.compile(r"\s*\{\{#include ([^}]+\.md)\}\}\s*")
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def chapters(items):
    for item in items:
        if isinstance(item, dict) and (chapter := item.get("Chapter")):
            yield chapter
            yield from chapters(chapter["sub_items"])


def main():
    context, book = json.load(sys.stdin)
    src = (Path(context["root"]) / context["config"]["book"]["src"]).resolve()
    pages, text_of = {}, {}
    for chapter in chapters(book["items"]):
        page = src / chapter["path"]
        whole = INCLUDE.fullmatch(chapter["content"])
        text_of[page] = (page.parent / whole[1]).resolve() if whole else page
        pages[page] = pages[text_of[page]] = page
    for chapter in chapters(book["items"]):
        page = src / chapter["path"]
        text = text_of[page]

        def moved(link, page=page, text=text):
            target = (text.parent / link[1]).resolve()
            path = relpath(pages.get(target, target), page.parent)
            return path if target in pages else path.removesuffix(".md") + "%2Emd" * path.endswith(".md")

        content = chapter["content"] if text == page else text.read_text()
        chapter["content"] = LINK.sub(moved, content)
    json.dump(book, sys.stdout)


if sys.argv[1:2] != ["supports"]:
    main()
