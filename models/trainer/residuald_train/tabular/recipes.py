"""The terms of each recipe's score. Their settings are the same for all data; RESEARCH.md has the measurements."""

from dataclasses import dataclass

from .diffusion import Noise

SHARP, COARSE = Noise(0.03, 1.0, 1), Noise(0.03, 3.0, 0)
HYBRID = Noise(0.05, 2.0, 1)


@dataclass(frozen=True)
class TermSpec:
    """One term of a score: a denoiser, and how its residual becomes a number.

    weight: the weight of the term's standard score in the weighted sum.
    spread: multiply the mean squared residual by the geometric mean of the variances that the network predicts.
    whiten: decorrelate the residual first, with the correlations of normal records.
    """

    denoiser: str  # kernel | blind | hybrid | ddim
    noise: Noise = COARSE
    weight: float = 1.0
    spread: bool = False
    whiten: bool = False

    @property
    def trained(self):
        return self.denoiser in ("blind", "hybrid")

    @property
    def needs_kernel(self):
        return self.denoiser in ("kernel", "hybrid")


RECIPES = {
    "blind": (TermSpec("blind"),),
    "kernel": (TermSpec("kernel"),),
    "hybrid": (TermSpec("hybrid", HYBRID, spread=True),),
    "ddim": (TermSpec("ddim"),),
    "best": (
        TermSpec("kernel", weight=2.0),
        TermSpec("kernel", weight=2.0, whiten=True),
        TermSpec("hybrid", HYBRID),
        TermSpec("hybrid", HYBRID, spread=True),
        TermSpec("blind", SHARP, spread=True),
    ),
}
ASINH_RECIPES = "blind", "kernel", "ddim"  # recipes that take the asinh of numbers; the others detect more without it
