"""What `residuald-train paraphrases` adds to a text-to-image pipeline: a small network that finds the nearest caption.

It stands in front of the denoiser, in the same graph. It embeds what the text encoder makes of a prompt, finds the
caption whose embedding has the highest cosine similarity, and gives the denoiser the states of that caption. So the
denoiser gets nothing but captions that it was trained on. A caption of the list, and the empty one of guidance, is
nearest to itself, so it comes through.

Only words are needed to train it. The loss is InfoNCE (van den Oord et al. 2018, arXiv 1807.03748): a paraphrase is
told from all captions by the embedding of its own, and both are embedded by the same network.
"""

import json
import os
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

from .. import TrainerError
from ..bundle.export import OPSET, check_out, to_onnx, write
from ..bundle.half import halved, round_weights
from ..bundle.served import session
from ..console import bar, say
from . import csv_file
from .text_encoder import TextEncoder
from .text_to_image import HIDDEN_STATES, TOLERANCE
from .train import descend

FEWEST, MOST = 2, 100_000  # pairs
MOST_CAPTIONS = 1000
MOST_CHARACTERS = 1000  # of a text
MOST_BYTES = 4 << 30  # of states in memory
HELD_OUT = 0.1  # share of the pairs that are measured on, if there is no file of others
DROPPED = 0.15  # share of the tokens that the network does not see in training
NOISE = 0.2  # standard deviation of what is added to the states in training, in theirs
SMOOTHING = 0.05
LOST = 0.05  # root mean square of what may be lost of the captions' states, relative to theirs
UNET = "unet/model.onnx"
PREFIX = "paraphrase_"
SHOWN = 8  # prompts that the merged graph is checked with


@dataclass(frozen=True)
class Options:
    seed: int = 0
    steps: int = 1500
    minutes: float | None = None
    batch: int = 128
    queries: int = 4
    width: int = 96  # of the values and of the embedding
    dropout: float = 0.4
    lr: float = 2e-3
    weight_decay: float = 0.05
    ema: float = 0.99
    device: str = "cpu"  # a GPU would save nothing
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


class Embedding(nn.Module):
    """States float32 [N, tokens, width] -> embedding [N, D] of length 1.

    A few learned queries attend to the tokens, so padding and filler words are ignored.
    """

    def __init__(self, width, options):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Linear(width, options.queries)
        self.values = nn.Linear(width, options.width)
        self.dropout = nn.Dropout(options.dropout)
        self.out = nn.Linear(options.queries * options.width, options.width)
        self.scale = nn.Parameter(torch.tensor(2.3))  # logarithm of the inverse temperature, for the loss alone

    def forward(self, words):
        words = self.norm(words)
        weights = self.queries(words)
        if self.training:
            dropped = torch.rand(weights.shape[:2]) < DROPPED
            weights = weights.masked_fill(dropped[..., None], -1e4)
        read = weights.softmax(1).transpose(1, 2) @ self.values(words)
        return F.normalize(self.out(self.dropout(F.silu(read.flatten(1)))), dim=-1)


class Retrieval(nn.Module):
    """Hidden states of any prompt [N, tokens, width] -> those of the nearest caption.

    `states` float32 [captions, tokens, width] are kept as products of codes and directions (a truncated singular value
    decomposition).
    """

    def __init__(self, embedding, states):
        super().__init__()
        self.embedding, self.shape = embedding, states.shape
        flat = states.reshape(-1, states.shape[-1])
        mean = flat.mean(0)
        u, s, v = torch.linalg.svd(flat - mean, full_matrices=False)
        lost = s.square().flip(0).cumsum(0).flip(0)  # without each direction and those after it
        rank = int((lost > LOST**2 * flat.square().sum()).sum())
        self.mean, self.directions = kept(mean), kept(v[:rank])
        self.codes = kept((u[:, :rank] * s[:rank]).reshape(len(states), -1))
        with torch.no_grad():
            self.keys = kept(embedding(states))

    def nearest(self, words):
        """-> int64 [N]: the number of the caption."""
        return (self.embedding(words) @ self.keys.T).argmax(1)

    def forward(self, encoder_hidden_states):
        codes = self.codes[self.nearest(encoder_hidden_states)].reshape(-1, self.shape[1], len(self.directions))
        return codes @ self.directions + self.mean


def kept(value):
    return nn.Parameter(value, requires_grad=False)


def read_pairs(path):
    """CSV with the columns caption and paraphrase -> [(caption, paraphrase)]. Raises TrainerError."""
    found = []
    for where, texts in csv_file.rows(path, ("caption", "paraphrase")):
        if len(found) == MOST:
            raise TrainerError(f"{path}: has more than {MOST} pairs; leave some out")
        found.append(pair(texts, where))
    return found


def pair(texts, where):
    found = tuple(text.strip() for text in texts)
    if not all(found):
        raise TrainerError(f"{where}: lacks the {'paraphrase' if found[0] else 'caption'}")
    if (longest := max(map(len, found))) > MOST_CHARACTERS:
        raise TrainerError(f"{where}: has {longest} characters, more than {MOST_CHARACTERS}")
    return found


def check_pairs(path, pairs, captions, encoder):
    """Raises TrainerError if there are too few or too many pairs, or if a caption or states do not fit."""
    if len(pairs) < FEWEST or len(captions) < FEWEST:
        raise TrainerError(
            f"{path}: has {len(pairs)} pairs of {len(captions)} captions; training needs at least {FEWEST} of each"
        )
    if len(captions) > MOST_CAPTIONS:
        raise TrainerError(f"{path}: has {len(captions)} captions; the network tells at most {MOST_CAPTIONS} apart")
    for caption in captions:
        if (tokens := len(encoder.tokenizer.encode(caption).ids)) > encoder.length:
            raise TrainerError(
                f"{path}: the caption {caption!r} has {tokens} tokens, and the text encoder takes {encoder.length}"
            )


def encode(encoder, texts):
    """Texts -> float16 [n, tokens, width]. Raises TrainerError if that is too large."""
    first = encoder.states(texts[:1])[0]
    if first.size * 2 * len(texts) > MOST_BYTES:
        raise TrainerError(f"the states of {len(texts)} texts take more than {MOST_BYTES >> 30} GiB; leave some out")
    states = np.empty((len(texts), *first.shape), np.float16)
    for i, text in enumerate(bar(texts, desc="encode", unit=" texts")):
        states[i] = encoder.states([text])[0]
    return torch.as_tensor(states)


def fit(states, captions, rows, options):
    """-> Embedding in eval mode.

    `states` float16 [n, tokens, width]: those of the paraphrases. `captions` float32 [m, tokens, width]. `rows` int
    [n]: the number of each paraphrase's caption.
    """
    torch.manual_seed(options.seed)
    net = Embedding(captions.shape[-1], options)
    g, spread = torch.Generator().manual_seed(options.seed + 1), captions.std()

    def batch_loss():
        pick = torch.randint(len(states), (options.batch,), generator=g)
        words = states[pick].float()
        words = words + NOISE * spread * torch.randn(words.shape, generator=g)
        found, keys = net(torch.cat([words, captions])).split([len(words), len(captions)])
        return (F.cross_entropy(net.scale.exp() * found @ keys.T, rows[pick], label_smoothing=SMOOTHING),)

    return descend(net, batch_loss, g, options, name="train paraphrases")


def read_pipeline(folder):
    """Folder of `residuald-train text-to-image` -> {path in the folder: bytes}. Raises TrainerError."""
    try:
        about = json.loads((folder / "model_index.json").read_text())
        content = {name: (folder / name).read_bytes() for name in ("model_index.json", UNET)}
    except (OSError, ValueError) as error:
        raise TrainerError(f"{folder} is not a pipeline of `residuald-train text-to-image`: {error}") from None
    for part in [name for name in about if (folder / name).is_dir()] + ["vae_decoder", "vae_encoder"]:
        content |= {f"{part}/{path.name}": path.read_bytes() for path in (folder / part).glob("*") if path.is_file()}
    return content


def merged(unet, front):
    """The bytes of the denoiser's graph and of the retrieval's -> those of both, the retrieval first."""
    model, before = onnx.load_from_string(unet), onnx.load_from_string(front)
    before = onnx.compose.add_prefix(before, PREFIX, rename_inputs=False)
    for node in model.graph.node:
        node.input[:] = [before.graph.output[0].name if name == HIDDEN_STATES else name for name in node.input]
    nodes = [*before.graph.node, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(before.graph.initializer)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def check_unet(folder, unet, encoder, width):
    """Raises TrainerError if the retrieval cannot stand before the graph `unet`."""
    model = onnx.load_from_string(unet)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    if model.opset_import[0].version != OPSET or shapes.get(HIDDEN_STATES, [0])[1:] != [encoder.length, width]:
        raise TrainerError(
            f"{folder / UNET} is not a denoiser of `residuald-train text-to-image` for {encoder.length} tokens of "
            f"{width} values, which the folder's text encoder gives"
        )
    if any(tensor.name.startswith(PREFIX) for tensor in model.graph.initializer):
        raise TrainerError(f"{folder / UNET} has paraphrases already; pass the folder that text-to-image wrote")


@torch.no_grad()
def check_graph(graph, unet, retrieval, words, options):
    """Compares the merged graph with the denoiser's after the retrieval in torch -> the largest difference.

    `words` float32 [n, tokens, width]. Raises TrainerError if the difference is large.
    """
    runs, error = (session(unet), session(graph)), 0.0
    g = torch.Generator().manual_seed(options.seed)
    channels = next(i.shape[1] for i in runs[0].get_inputs() if i.name == "sample")
    inputs = {"sample": torch.randn(len(words), channels, 8, 8, generator=g).numpy()}
    for t in (0, 400, 999):
        inputs["timestep"] = np.array(t)
        want, got = (
            run.run(["out_sample"], inputs | {HIDDEN_STATES: given.numpy()})[0]
            for run, given in zip(runs, (retrieval(words), words), strict=True)
        )
        error = max(error, float((np.abs(got - want) / np.maximum(1, np.abs(want))).max()))
    if not error <= TOLERANCE:
        raise TrainerError(f"ONNX Runtime and torch disagree by {error} on the paraphrases; nothing was written")
    return error


@torch.no_grad()
def nearest(retrieval, states):
    """States [n, tokens, width] -> int64 [n]: the number of each one's caption."""
    return torch.cat([retrieval.nearest(some.float()) for some in states.split(256)])


def divide(pairs, held_out, options):
    """-> (pairs to train on, others to measure on): those of the file `held_out`, or if None a share of `pairs`."""
    if held_out:
        return pairs, read_pairs(held_out)
    order = np.random.default_rng(options.seed).permutation(len(pairs))
    cut = max(1, round(HELD_OUT * len(pairs)))
    return [pairs[i] for i in sorted(order[cut:])], [pairs[i] for i in order[:cut]]


def train(folder, path, held_out, options, out, force=False):
    """Trains on the pairs of the file `path`, and writes the pipeline `folder` with the network to `out`."""
    check_out(out, force, "pipeline")
    content, encoder, pairs = read_pipeline(folder), TextEncoder(folder), read_pairs(path)
    captions = list(dict.fromkeys(caption for caption, _ in pairs))
    check_pairs(path, pairs, captions, encoder)
    pairs, measured = divide(pairs, held_out, options)
    if strange := [caption for caption, _ in measured if caption not in captions]:
        raise TrainerError(f"{held_out}: no pair of {path} has the caption {strange[0]!r}")
    captions.append("")  # of guidance
    keys = torch.as_tensor(encoder.states(captions))
    check_unet(folder, content[UNET], encoder, keys.shape[-1])
    print(f"pairs: {len(pairs)} to train on, {len(measured)} to measure on, {len(captions) - 1} captions")
    row = {caption: i for i, caption in enumerate(captions)}
    texts = [text for _, text in [*pairs, *measured]]
    if long := sum(len(encoder.tokenizer.encode(text).ids) > encoder.length for text in texts):
        say(f"{long} paraphrases have more than {encoder.length} tokens; what comes after these is left out")
    states = encode(encoder, texts)
    rows = torch.tensor([row[caption] for caption, _ in [*pairs, *measured]])
    retrieval = Retrieval(fit(states[: len(pairs)], keys, rows[: len(pairs)], options), keys).eval()
    round_weights(retrieval)
    if strange := [i for i, found in enumerate(nearest(retrieval, keys).tolist()) if found != i]:
        raise TrainerError(f"{path}: the text encoder cannot tell the caption {captions[strange[0]]!r} from another")
    example = torch.cat([keys[-1:], keys[:1]])
    front = halved(to_onnx(retrieval, (example,), (HIDDEN_STATES,), ("states",)))
    content[UNET] = merged(content[UNET], front)
    words = torch.cat([keys[-1:], keys[:SHOWN], states[-SHOWN:].float()])
    error = check_graph(content[UNET], read_pipeline(folder)[UNET], retrieval, words, options)
    write(out, content, force, "pipeline")
    right = (nearest(retrieval, states[len(pairs) :]) == rows[len(pairs) :]).float().mean().item()
    kind = f"of {held_out}" if held_out else "held out, whose words others of the pairs share,"
    print(f"of {len(measured)} paraphrases {kind} {100 * right:.1f} % are nearest to their own caption")
    say(f"ONNX Runtime and torch differ by at most {error:.1e}")
    print(f"wrote {out} (the network: {len(front) / 1e6:.2f} MB)")
