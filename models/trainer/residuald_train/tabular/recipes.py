"""The terms of each recipe's score. Their settings are the same for all data; RESEARCH.md has the measurements."""

from dataclasses import dataclass

from .diffusion import Noise

COARSE = Noise(0.03, 3.0, 0)
HYBRID = Noise(0.05, 2.0, 1)


@dataclass(frozen=True)
class TermSpec:
    """One term of a score: a denoiser, and how its residual becomes a number.

    weight: the weight of the term's standard score in the weighted sum.
    spread: multiply the mean squared residual by the geometric mean of the variances that the network predicts.
    free: the kernel's free energy, which is its -log p, in place of the squared residual.
    ranks: in the rank space (`ranks`) in place of the standardised one.
    """

    denoiser: str  # kernel | blind | hybrid | ddim
    noise: Noise = COARSE
    weight: float = 1.0
    spread: bool = False
    free: bool = False
    ranks: bool = False

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
        TermSpec("kernel"),
        TermSpec("kernel", free=True),
        TermSpec("kernel", ranks=True),
        TermSpec("kernel", free=True, ranks=True),
        TermSpec("hybrid", HYBRID),
        TermSpec("hybrid", HYBRID, spread=True),
    ),
}
ASINH_RECIPES = "blind", "kernel", "ddim"  # recipes that take the asinh of numbers; the others detect more without it
