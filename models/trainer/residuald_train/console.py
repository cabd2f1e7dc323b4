"""Prints progress messages to standard error, so that standard output holds only results."""

import sys


def say(*lines):
    if lines:
        print(*lines, sep="\n", file=sys.stderr)
