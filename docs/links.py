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
    src = Path(context["root"], "src").resolve()
    page_of, texts = {}, []
    for chapter in chapters(book["items"]):
        # The path is where the page is built: README.md becomes index.md.
        source, page = src / chapter["source_path"], src / chapter["path"]
        whole = INCLUDE.fullmatch(chapter["content"])
        text = (source.parent / whole[1]).resolve() if whole else source
        page_of[source] = page_of[text] = page
        texts.append((chapter, page, text))
    for chapter, page, text in texts:

        def moved(link, page=page, text=text):
            target = (text.parent / link[1]).resolve()
            path = relpath(page_of.get(target, target), page.parent)
            return path if target in page_of else re.sub(r"\.md$", "%2Emd", path)

        chapter["content"] = LINK.sub(moved, text.read_text())
    json.dump(book, sys.stdout)


if sys.argv[1:2] != ["supports"]:
    main()
