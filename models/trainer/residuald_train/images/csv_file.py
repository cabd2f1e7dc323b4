"""Reads CSV files that name images, captions or groups."""

import csv

from .. import TrainerError


def rows(path, columns):
    """CSV in UTF-8 with these columns -> (where, the texts of the columns) for each row. Raises TrainerError.

    `where` is the path and the line, for messages. A text that is absent is empty.
    """
    try:
        with open(path, newline="", encoding="utf-8") as f:
            found = csv.DictReader(f)
            if not set(columns) <= set(found.fieldnames or ()):
                raise TrainerError(f"{path}: needs the columns {' and '.join(columns)}")
            for row in found:
                yield f"{path}, line {found.line_num}", [row[name] or "" for name in columns]
    except (UnicodeDecodeError, csv.Error) as error:
        raise TrainerError(f"{path} is not CSV in UTF-8: {error}") from None
