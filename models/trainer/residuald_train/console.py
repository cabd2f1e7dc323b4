"""Messages about progress go to standard error, so that standard output holds results only."""

import sys


def say(*lines):
    print(*lines, sep="\n", file=sys.stderr)
