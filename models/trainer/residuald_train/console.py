"""Prints progress to standard error, so that standard output holds only results.

On a terminal there are bars that move. Elsewhere, as in a log file, there is a line now and then.
"""

import sys

from tqdm import tqdm

LINE_EVERY = 30.0  # seconds between the lines that replace a bar
BLOCKS = "▁▂▃▄▅▆▇█"


def say(*lines):
    if lines:
        print(*lines, sep="\n", file=sys.stderr)


def on_terminal():
    return sys.stderr.isatty()


def bar(steps=None, **options):
    """A tqdm bar, with the arguments of tqdm; without a terminal, one that prints a line every LINE_EVERY seconds."""
    if on_terminal():
        return tqdm(steps, **{"mininterval": 0.5} | options)
    options |= {"mininterval": LINE_EVERY, "delay": LINE_EVERY, "miniters": 1}
    return Lines(steps, **options)


class Lines(tqdm):
    """Prints a line where tqdm would draw its bar again. What takes less than LINE_EVERY prints nothing."""

    monitor_interval = 0  # no thread that refreshes

    def display(self, msg=None, pos=None):
        """Prints a line; the arguments are those of tqdm."""
        done = self.format_dict
        scaled = self.format_sizeof if done["unit_scale"] else "{:,}".format
        total = f" of {scaled(done['total'])}" if done["total"] else ""
        unit, postfix = done["unit"].strip(), f", {done['postfix']}" if done["postfix"] else ""
        elapsed = self.format_interval(done["elapsed"])
        say(f"{done['prefix'].rstrip(': ')}: {scaled(done['n'])}{total} {unit}{postfix}, {elapsed}")

    def close(self):
        """Prints a last line if there were others."""
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        if self.format_dict["elapsed"] >= LINE_EVERY:
            self.display()


def sparkline(values, width=40):
    """Numbers -> a line of at most `width` blocks, each the mean of its part; the highest mean is a full block.

    >>> sparkline([8, 4, 2, 1])
    '█▄▂▁'
    """
    width = min(width, len(values))
    parts = [values[len(values) * i // width : len(values) * (i + 1) // width] for i in range(width)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(0, *means, 0), max(means, default=0)
    if high <= low:
        return BLOCKS[0] * width
    return "".join(BLOCKS[min(7, int(8 * (mean - low) / (high - low) - 1e-9))] for mean in means)


def say_curve(what, losses):
    """Shows losses by step as a sparkline, on a terminal only."""
    if losses and on_terminal():
        few = max(1, len(losses) // 20)
        first, last = sum(losses[:few]) / few, sum(losses[-few:]) / few
        say(f"{what}: loss {first:.4f} {sparkline(losses)} {last:.4f}")
