"""What each recipe is made of. One setting for all data; RESEARCH.md holds the measurements behind it."""

from dataclasses import dataclass

from .diffusion import Noise

SHARP, COARSE = Noise(0.03, 1.0, 1), Noise(0.03, 3.0, 0)


@dataclass(frozen=True)
class Part:
    """One term of a score: a denoiser, and how its residual becomes a number.

    `weight`: of its standard score in the sum. `spread`: the mean squared residual is multiplied with the geometric
    mean of the variances that the network expects. `whiten`: the residual is first decorrelated as on normal records.
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
    def wants_kernel(self):
        return self.denoiser in ("kernel", "hybrid")


HYBRID = Noise(0.05, 2.0, 1)
RECIPES = {
    "blind": (Part("blind"),),
    "kernel": (Part("kernel"),),
    "hybrid": (Part("hybrid", HYBRID, spread=True),),
    "ddim": (Part("ddim"),),
    "best": (
        Part("kernel", weight=2.0),
        Part("kernel", weight=2.0, whiten=True),
        Part("hybrid", HYBRID),
        Part("hybrid", HYBRID, spread=True),
        Part("blind", SHARP, spread=True),
    ),
}
TAME = "blind", "kernel", "ddim"  # those that see the asinh of numbers; the others do better on them as they are
