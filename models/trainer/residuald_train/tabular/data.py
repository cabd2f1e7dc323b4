"""Reads files by the daemon's own code into a `residuald.Table`: records as a producer would send them."""

import hashlib
import re
from pathlib import Path

import residuald

from .. import TrainerError
from ..console import bar


def read(paths, max_rows=None, seed=0, format=None, **wrapping):
    """Reads files in order -> residuald.Table [rows]. Raises TrainerError that names the file.

    A path may be a folder of part files, a pattern such as "part-*.csv", or "-" for standard input.

    If the files hold more than `max_rows` rows in total, `max_rows` of them are drawn at random, each row equally
    likely. Only the drawn rows are kept in memory. `wrapping` (envelope, unwrap, allow_nan) says how JSON records are
    wrapped, as for residuald.read.
    """
    bar = Bar()
    try:
        return residuald.read(list(map(str, paths)), max_rows, seed, bar, format, **wrapping)
    except residuald.Error as error:
        raise TrainerError(f"cannot read {with_flags(one_line(error))}") from None
    except ValueError as error:
        raise TrainerError(f"--{one_line(error)}") from None
    finally:
        bar.close()


def file_facts(table):
    """The files that a table was read from, as manifests list them: file, sha256, rows, and drawn if sampled.

    Standard input and pipes have no sha256.
    """
    return [
        {"file": Path(file["path"]).name}
        | ({"sha256": digest(file["path"])} if Path(file["path"]).is_file() else {})
        | {"rows": file["rows"]}
        | ({} if file["drawn"] is None else {"drawn": file["drawn"]})
        for file in table.files
        if file["drawn"] != 0
    ]


def digest(path):
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


LONGEST_REASON = 400
ARGUMENT = re.compile(r'\b(envelope|unwrap|allow_nan)=(\[[^\]]*\]|"[^"]*"|True)')

QUOTES = str.maketrans("", "", '[]" ')


def with_flags(message):
    """A message of the package residuald about its arguments, with the flags of the verbs instead.

    >>> with_flags('give envelope=["cloudevents", "debezium"] and unwrap="list", or allow_nan=True')
    'give --envelope cloudevents,debezium and --unwrap list, or --allow-nan'
    """

    def flag(found):
        name, value = found.groups()
        flag = f"--{name.replace('_', '-')}"
        return flag if value == "True" else f"{flag} {value.translate(QUOTES)}"

    return ARGUMENT.sub(flag, message)


def one_line(error):
    """The message of an error on one line and cut to LONGEST_REASON, because some errors quote the data."""
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"


class Bar:
    """A progress bar for each file that takes more than a second."""

    def __init__(self):
        self.path, self.bar = None, None

    def __call__(self, path, done, total, unit):
        if path != self.path:
            self.close()
            scaled = {"unit": "B", "unit_scale": True} if unit == "bytes" else {"unit": " rows"}
            name = Path(path).name
            self.path, self.bar = path, bar(desc=f"read {name}", total=total or None, **{"delay": 1} | scaled)
        self.bar.update(done - self.bar.n)

    def close(self):
        if self.bar is not None:
            self.bar.close()
