"""Contact sheets: one PNG with a row for each sample, whose images are side by side."""

import numpy as np
import torch
from PIL import Image

GAP = 4


def contact_sheet(columns, most=8):
    """Columns, each uint8 [n, H, W, 1 or 3] -> one Pillow image with a row for each of the first `most` samples."""
    n = min(most, len(columns[0]))
    h, w = columns[0].shape[1:3]
    out = np.full((n * (h + GAP) + GAP, len(columns) * (w + GAP) + GAP, 3), 255, np.uint8)
    for j, column in enumerate(columns):
        for i in range(n):
            y, x = GAP + i * (h + GAP), GAP + j * (w + GAP)
            out[y : y + h, x : x + w] = column[i]
    return Image.fromarray(out)


def heat_colours(heat, top=None):
    """float [n, H, W] -> uint8 [n, H, W, 3]: black, red, yellow, white at `top` (default: the maximum)."""
    t = np.clip(heat / max(top or float(heat.max()), 1e-9), 0, 1)[..., None] * 3
    return (np.clip(np.concatenate([t, t - 1, t - 2], -1), 0, 1) * 255).round().astype(np.uint8)


def to_pixels(x):
    """Standardised [n, C, H, W] -> uint8 [n, H, W, C]."""
    return (x.detach().cpu().permute(0, 2, 3, 1).numpy() * 48 + 128).clip(0, 255).astype(np.uint8)


def training_sheets(folder):
    """A function for `fit` that writes contact sheets to `folder` during training."""
    folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def draw(scorer, x, y, step):
        scorer.eval()
        contact_sheet(scorer.sheet(x, y)).save(folder / f"step-{step:06}.png")
        scorer.train()

    return draw
