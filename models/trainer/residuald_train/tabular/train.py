"""Fits a recipe: trains its denoisers, then sets the constants of its terms. Reproducible from the seed."""

import contextlib
import hashlib
import math
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from .. import TrainerError
from ..console import bar, say_curve
from ..preprocessing import Preprocessing
from ..training import (
    SAVE_EVERY,
    check_same_run,
    interrupted,
    load_state,
    loss_curve,
    progress,
    save_state,
    stop_between_steps,
)
from .coreset import Kernel, size_for
from .ddim import ReverseProcess
from .diffusion import Blind, Hybrid, loss
from .ranks import Ranks
from .recipes import ASINH_RECIPES, RECIPES
from .scorer import Scorer, Term, evaluate, masked

DROP = 0.05  # probability of hiding an optional feature in training, so that the network learns to fill it in
FLOOR = 0.01  # share of the typical residual below which differences are float32 noise
LEAST_DEVIATION = 0.1  # of log E; keeps a term without variation (duplicate rows) from dominating the others
TYPICAL_ROWS = 2000  # most rows from which the terms' means and deviations are computed
TRUSTED_ROWS = 300  # training rows with which a network's terms have half their weight


@dataclass(frozen=True)
class Options:
    recipe: str = "best"
    seed: int = 0
    steps: int = 1000
    batch: int = 128
    width: int = 96
    coreset: int | None = None  # centers of each kernel; None: `coreset.size_for`
    lr: float = 2e-3
    weight_decay: float = 1e-4
    ema: float = 0.995
    minutes: float | None = None  # limit of training time over all denoisers; also shortens the schedule
    device: str = "cpu"

    def same_run(self):
        """The options that a run and the one that continues it must share."""
        return {k: v for k, v in asdict(self).items() if k not in ("minutes", "device")}


def split(n, held_out, seed):
    """Row numbers 0..n-1, shuffled -> (train, held out)."""
    order = np.random.default_rng(seed).permutation(n)
    k = max(1, round(n * held_out))
    return order[k:], order[:k]


def fit(features, X, options, quiet=False, checkpoint=None, resume=False):
    """X float32 [n, F], NaN = missing -> Scorer in eval mode. Raises TrainerError if the loss is not finite.

    `checkpoint`: a path that is saved every minute and on Ctrl-C, which then raises KeyboardInterrupt. With `resume`,
    training continues from it if it exists, and ends as if it had never stopped.
    """
    torch.set_num_threads(1)  # the rounding of a sum depends on how threads split it
    torch.manual_seed(options.seed)
    g = torch.Generator().manual_seed(options.seed)
    space = Preprocessing(features, X, asinh_numbers=options.recipe in ASINH_RECIPES)
    with torch.no_grad():
        Z, observed = space(torch.as_tensor(X))
        optional = [j for j, f in enumerate(features) if f.missing == "impute"]
        specs = RECIPES[options.recipe]
        kernel = ranks = rank_kernel = None
        sums, size = space.sums[:, optional], options.coreset or size_for(Z.shape[1])
        if any(spec.needs_kernel for spec in specs):
            kernel = Kernel(Z, sums, size, seed=options.seed)
        if any(spec.ranks for spec in specs):
            known = space.per_column(observed)
            ranks = Ranks(Z, [j for j, k in enumerate(space.owner.tolist()) if features[k].type == "number"], known)
            rank_kernel = Kernel(masked(ranks(Z), known), sums, size, seed=options.seed)
    denoisers = {}  # terms with the same denoiser and noise share it
    for spec in specs:
        if (spec.denoiser, spec.noise) not in denoisers:
            denoisers[spec.denoiser, spec.noise] = make_denoiser(spec, space, optional, kernel, options)
    terms = [Term(spec, denoisers[spec.denoiser, spec.noise]) for spec in specs]
    scorer = Scorer(features, space, terms, kernel, options.recipe, ranks, rank_kernel)
    trained = [term for term in {id(term.denoiser): term for term in terms}.values() if term.denoiser is not None]
    run = Run(checkpoint, options, X, g, resume)
    device = torch.device(options.device)
    scorer.to(device)
    rows = Z.to(device), None if observed is None else observed.to(device)
    with stop_between_steps() if checkpoint else contextlib.nullcontext() as run.asked:
        for number, term in enumerate(trained):
            part = Part(run, number, options.minutes and options.minutes / len(trained))
            losses = train(scorer, term, *rows, g, options, quiet, part)
            scorer.curves.append({"denoiser": term.spec.denoiser, **loss_curve(losses)})
    scorer.to("cpu")
    with torch.no_grad():
        set_constants(scorer, Z, observed, g)
    return scorer.eval()


class Run:
    """The checkpoint of a training: a state for each denoiser, and that of the random generator `g`."""

    def __init__(self, path, options, X, g, resume):
        self.path, self.g, self.states, self.asked = path, g, {}, None
        self.identity = options.same_run() | {"data": hashlib.sha256(X.tobytes()).hexdigest() if path else None}
        if resume and path and path.exists():
            found = load_state(path)
            check_same_run(path, self.identity, found["run"], free=())
            self.states = found["denoisers"]
            g.set_state(found["generator"])


class Part:
    """The part of a Run that trains one denoiser. `minutes`: its limit of time, or None."""

    def __init__(self, run, number, minutes):
        self.run, self.number, self.minutes = run, number, minutes
        self.state, self.saved = run.states.get(number), time.monotonic()

    def due(self):
        return self.run.path and time.monotonic() - self.saved > SAVE_EVERY

    def save(self, state):
        if self.run.path:
            self.run.states[self.number] = state
            content = {"run": self.run.identity, "denoisers": self.run.states, "generator": self.run.g.get_state()}
            save_state(self.run.path, content)
            self.saved = time.monotonic()


def make_denoiser(spec, space, optional, kernel, options):
    """An untrained denoiser, or None for the kernel, which the scorer holds itself."""
    dims, pick = len(space.owner), space.sums[:, optional].T.contiguous()
    if spec.denoiser == "blind":
        return Blind(dims, len(optional), options.width)
    if spec.denoiser == "hybrid":
        return Hybrid(dims, pick, options.width, max(1e-4, FLOOR * kernel.variance))
    return ReverseProcess(dims, pick, options.width, seed=options.seed) if spec.denoiser == "ddim" else None


def train(scorer, term, Z, observed, g, options, quiet=False, part=None):
    """Trains the term's denoiser on Z [n, D] -> its losses by step. `observed` [n, F] of 0 and 1; None means all."""
    optional, owner, denoiser = scorer.optional, scorer.space.owner, term.denoiser

    def batch_loss():
        rows = torch.randint(0, len(Z), (options.batch,), generator=g).to(Z.device)
        every = torch.ones(options.batch, scorer.space.sums.shape[1], device=Z.device)
        known = every if observed is None else observed[rows]
        x, shown = Z[rows], known.clone()
        if len(optional):
            kept = torch.rand(options.batch, len(optional), generator=g) >= DROP
            shown[:, optional] *= kept.float().to(Z.device)
        seen, hidden = shown[:, owner], 1 - shown[:, optional]
        if term.spec.denoiser == "ddim":
            return denoiser.loss(x, seen, hidden, known[:, owner], g)

        def denoise(xt):
            with torch.no_grad():
                kernel, _ = evaluate(scorer.kernel, xt, hidden, seen, rows) if term.spec.needs_kernel else (None, None)
            return denoiser(xt, hidden, kernel)

        return loss(denoise, x, seen, known[:, owner], term.spec.noise, g)

    return descend(denoiser, batch_loss, options, term.spec.denoiser, quiet, part)


def set_constants(scorer, Z, observed, g):
    """Sets each term's floor, mean and exponent from training rows. The kernels leave each row out.

    A network has seen these rows, so its deviations from them look too small, the more so the fewer there are. So its
    terms get less weight where there are few.
    """
    rows = torch.randperm(len(Z), generator=g)[:TYPICAL_ROWS]
    z, seen = Z[rows], None if observed is None else observed[rows]
    energies = torch.cat([energy for _, _, energy, _ in scorer.evaluate_terms(z, seen, rows)], 1)
    scorer.floor.copy_((FLOOR * energies.median(0).values).clamp(min=1e-5)[:, None])
    logs = torch.cat([log for *_, log in scorer.evaluate_terms(z, seen, rows)], 1)
    trust = len(Z) / (len(Z) + TRUSTED_ROWS)
    weight = torch.tensor([term.spec.weight * (trust if term.spec.trained else 1) for term in scorer.terms])
    weight = weight / logs.std(0).clamp(min=LEAST_DEVIATION)
    scorer.typical.copy_(logs.mean(0)[:, None])
    scorer.exponent.copy_((weight / weight.sum())[:, None])


def descend(model: nn.Module, batch_loss, options, what="train", quiet=False, part=None):
    """Runs AdamW with warm-up and cosine decay -> losses by step. `model` gets the moving average of its weights.

    `part`: the Part of a Run to save, and to continue from.
    """
    weights = list(model.parameters())
    average = [w.detach().clone() for w in weights]
    adam = torch.optim.AdamW(weights, lr=options.lr, weight_decay=options.weight_decay, betas=(0.9, 0.99))
    losses, before = [], 0.0
    if part and part.state:
        losses, before = restore(part.state, model, average, adam)
    began, minutes = time.monotonic(), part and part.minutes
    steps = bar(total=options.steps, initial=len(losses), desc=f"train {what}", unit=" steps", disable=quiet)

    def spent():
        return before + time.monotonic() - began

    def keep_state(finished=False):
        part.save(
            {"losses": losses, "spent": spent(), "finished": finished, "model": model.state_dict()}
            | {"average": average, "adam": {} if finished else adam.state_dict()}
        )

    finished = bool(part and part.state and part.state["finished"])
    while not finished and (done := progress(len(losses), spent(), options.steps, minutes)) < 1:
        if part and part.run.asked:
            steps.close()
            keep_state()
            raise interrupted(part.run.path)
        step, cosine = len(losses), 0.5 + 0.5 * math.cos(math.pi * done)
        adam.param_groups[0]["lr"] = options.lr * min(1, step / 100) * cosine + 1e-6
        error = batch_loss()
        if not torch.isfinite(error):
            raise TrainerError(f"the loss became {error.item()} at step {step}; check the data for extreme values")
        losses.append(error.item())
        adam.zero_grad(set_to_none=True)
        error.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        keep = min(options.ema, (step + 1) / (step + 10))
        torch._foreach_mul_(average, keep)
        torch._foreach_add_(average, [w.detach() for w in weights], alpha=1 - keep)
        steps.update()
        if step % 50 == 0:
            steps.set_postfix_str(f"loss {losses[-1]:.4f}", refresh=False)
        if part and part.due():
            keep_state()
    steps.close()
    if not quiet:
        say_curve(f"train {what}", losses)
    if part and not finished:
        keep_state(finished=True)
    if part and part.run.asked:
        raise interrupted(part.run.path)
    with torch.no_grad():
        for weight, mean in zip(weights, average, strict=True):
            weight.copy_(mean)
    return losses


def restore(state, model, average, adam):
    """Loads a denoiser's state into its model, moving average and optimiser -> (losses so far, seconds spent)."""
    model.load_state_dict(state["model"])
    if not state["finished"]:
        adam.load_state_dict(state["adam"])
    with torch.no_grad():
        for mean, saved in zip(average, state["average"], strict=True):
            mean.copy_(saved)
    return list(state["losses"]), state["spent"]
