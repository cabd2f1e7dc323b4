"""Measures of drawn textures: kernel inception distance, likeness to a photograph, and textures without structure."""

import numpy as np
from skimage.feature import match_template

SUBSETS, SUBSET = 100, 50


def kid(a, b, seed=0):
    """Features float64 [n, D], [m, D] -> (mean, standard deviation) of the kernel inception distance over subsets.

    The unbiased estimate of the squared maximum mean discrepancy with the kernel (x y / D + 1)^3 (Binkowski et al.
    2018, arXiv 1801.01401), times 1000. Both are divided by the root mean square of `b`, since the network is not
    Inception and its features have no fixed scale.
    """
    scale = np.sqrt(np.square(b).mean())
    a, b, rng = a / scale, b / scale, np.random.default_rng(seed)
    size = min(SUBSET, len(a), len(b))

    def pick(x):
        return x[rng.choice(len(x), size, replace=False)]

    found = [1000 * squared_mmd(pick(a), pick(b)) for _ in range(SUBSETS)]
    return np.mean(found), np.std(found)


def squared_mmd(a, b):
    n, width = a.shape

    def kernel(x, y):
        return (x @ y.T / width + 1) ** 3

    def within(x):
        k = kernel(x, x)
        return (k.sum() - np.trace(k)) / (n * (n - 1))

    return within(a) + within(b) - 2 * kernel(a, b).mean()


def likeness(patch, photograph):
    """Gray patch [h, w], photograph [H, W] -> (highest correlation with any place of it, mirrored or not; the place).

    The correlation is that of pixels (Pearson), so brightness and contrast do not count. The place is a copy of the
    photograph, mirrored as it was found.
    """
    best, place = -1.0, None
    for image in (photograph, photograph[:, ::-1]):
        found = match_template(image.astype(np.float32), patch.astype(np.float32))
        y, x = np.unravel_index(found.argmax(), found.shape)
        if found[y, x] > best:
            best, place = float(found[y, x]), image[y : y + patch.shape[0], x : x + patch.shape[1]]
    return best, place


def gaussian_texture(image, rng):
    """uint8 [H, W, C] -> an image with the same colours' covariances at all distances, and nothing else of it.

    Random-phase noise (Galerne, Gousseau and Morel 2011): one random phase for each frequency is added to all channels
    of the periodic component (Moisan 2011).
    """
    x = image.astype(np.float64)
    mean, h, w = x.mean((0, 1)), *x.shape[:2]
    phase = np.angle(np.fft.fft2(rng.normal(size=(h, w))))
    spectrum = np.fft.fft2(periodic(x - mean), axes=(0, 1)) * np.exp(1j * phase)[..., None]
    return (np.fft.ifft2(spectrum, axes=(0, 1)).real + mean).round().clip(0, 255).astype(np.uint8)


def periodic(x):
    """[H, W, C] -> its periodic component: without the jump between opposite edges."""
    h, w = x.shape[:2]
    jump = np.zeros_like(x)
    jump[0] += x[0] - x[-1]
    jump[-1] -= x[0] - x[-1]
    jump[:, 0] += x[:, 0] - x[:, -1]
    jump[:, -1] -= x[:, 0] - x[:, -1]
    laplacian = 2 * np.cos(2 * np.pi * np.fft.fftfreq(h))[:, None] + 2 * np.cos(2 * np.pi * np.fft.fftfreq(w)) - 4
    laplacian[0, 0] = 1
    smooth = np.fft.fft2(jump, axes=(0, 1)) / laplacian[..., None]
    smooth[0, 0] = 0
    # The smooth component solves Laplace's equation with the jump at the edges as its source.
    return x + np.fft.ifft2(smooth, axes=(0, 1)).real
