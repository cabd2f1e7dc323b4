"""A small convolutional network that names texture, defect and colour of an image, to judge drawn images with.

It is trained on crops of the photographs with the defects of textures.py, from a seed of its own, and never sees a
drawn image.
"""

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from surface import EDGE, TEXTURES
from textures import DEFECTS, TINTS, cut, draw, tinted
from torch import nn

from residuald_train.console import bar

NONE = "none"
HEADS = {
    "texture": TEXTURES,
    "defect": (NONE, *DEFECTS),
    "colour": tuple(sorted({tint for tints in TINTS.values() for tint in tints})),
}
SEED = 1000  # far from those of the training images
STEPS, BATCH, RATE = 700, 24, 3e-3
WIDTHS = 24, 48, 96, 96


class Classifier(nn.Module):
    """Images float32 [N, 3, H, W] in 0..1 of any size -> {head: logits [N, classes]}."""

    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for i, width in enumerate(WIDTHS):
            kernel, stride = (7, 4) if i == 0 else (3, 2)
            layers += [nn.Conv2d(before, width, kernel, stride, kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * before, len(classes)) for name, classes in HEADS.items()})

    def forward(self, x):
        z = self.body(x)
        z = torch.cat([z.mean((2, 3)), z.amax((2, 3))], 1)  # a defect is small, so its maximum counts
        return {name: head(z) for name, head in self.heads.items()}

    def features(self, x):
        """Images -> float32 [N, D]: the mean of the last layer over the image."""
        return self.body(x).mean((2, 3))


def photographs():
    return {name: getattr(skimage.data, name)() for name in TEXTURES}


def example(textures, rng, size=256, left=0.0, right=EDGE, defect=None):
    """A random crop of a random texture between two shares of the width -> (uint8 [size, size, 3], {head: class}).

    `defect`: None for a random one, each as often as none.
    """
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    defect = defect or HEADS["defect"][rng.integers(len(HEADS["defect"]))]
    image = cut(textures[texture], rng, left, right, size)
    if defect != NONE:
        image = draw(image, defect, "bright" if rng.random() < 0.5 else "dark", rng)
    colour = list(TINTS[texture])[rng.integers(len(TINTS[texture]))]
    image = np.asarray(tinted(image, TINTS[texture][colour]))
    return image, {"texture": texture, "defect": defect, "colour": colour}


def to_input(images):
    """uint8 images [N, H, W, 3] -> float32 [N, 3, H, W] in 0..1."""
    return torch.as_tensor(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def load_or_train(path):
    """Reads the classifier from the file `path`. Trains and writes it first if the file is absent."""
    if path.exists():
        network = Classifier()
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    network = train()
    torch.save(network.state_dict(), path)
    return network


def train():
    """-> Classifier in eval mode."""
    torch.manual_seed(SEED)
    rng, textures, network = np.random.default_rng(SEED), photographs(), Classifier()
    adam = torch.optim.AdamW(network.parameters(), RATE)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, STEPS)
    for _ in bar(range(STEPS), desc="classifier", unit=" steps"):
        images, named = zip(*(example(textures, rng) for _ in range(BATCH)), strict=True)
        x = to_input([image[:, ::-1] if rng.random() < 0.5 else image for image in images])
        logits = network(x)
        classes = {name: torch.tensor([HEADS[name].index(one[name]) for one in named]) for name in HEADS}
        loss = sum(F.cross_entropy(logits[name], classes[name]) for name in HEADS)
        adam.zero_grad()
        loss.backward()
        adam.step()
        rate.step()
    return network.eval()


@torch.no_grad()
def names(network, images):
    """uint8 images -> what the network sees in each: [{head: class}]."""
    found = [{name: y.argmax(1).item() for name, y in network(to_input([image])).items()} for image in images]
    return [{name: HEADS[name][index] for name, index in one.items()} for one in found]


@torch.no_grad()
def features(network, images):
    """uint8 images of one size -> float64 [N, D]."""
    return torch.cat([network.features(to_input([image])) for image in images]).double().numpy()
