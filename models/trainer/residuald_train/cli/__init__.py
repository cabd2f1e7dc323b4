"""The command line: one file for each verb, in the order that `residuald-train --help` lists them.

A verb parses and checks its arguments. It imports torch only when it runs, because that takes seconds.
"""

import argparse

from .. import TrainerError, __version__
from ..console import say
from . import (
    bench,
    bench_generate,
    bench_images,
    export_diffusers,
    images,
    paraphrases,
    quantize,
    report,
    schema,
    screen,
    tabular,
    text_to_image,
    translate,
    wrap,
)

VERBS = (
    schema,
    tabular,
    wrap,
    screen,
    quantize,
    report,
    bench,
    images,
    bench_images,
    translate,
    text_to_image,
    paraphrases,
    export_diffusers,
    bench_generate,
)
BAD_INPUT, FILE_ERROR, INTERRUPTED = 65, 74, 130  # exit codes: EX_DATAERR, EX_IOERR, 128 + SIGINT


def parser():
    top = argparse.ArgumentParser(prog="residuald-train", description="Trains models for residuald.")
    top.add_argument("--version", action="version", version=f"residuald-train {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        verb.add_parser(verbs)
    return top


def main(argv=None):
    """Runs a verb and prints its error, if any -> the exit code."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except TrainerError as error:
        say(f"residuald-train: {error}")
        return BAD_INPUT
    except OSError as error:
        say(f"residuald-train: {error}")
        return FILE_ERROR
    except KeyboardInterrupt as stopped:
        say(f"residuald-train: stopped; {stopped if stopped.args else 'nothing was written'}")
        return INTERRUPTED
    return 0
