"""Measures records per second of a bundle's network in PyTorch, eager and compiled, on inputs in device memory.

The trainer's code builds the network with the bundle's sizes and random weights. The weights do not affect its speed.
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("bundle", choices=["payments", "image256"])
    p.add_argument("--kit", type=Path, required=True)
    p.add_argument("--device", default="cuda")
    p.add_argument("--tiny", action="store_true")
    args = p.parse_args()
    sys.path.insert(0, str(args.kit / "trainer"))
    manifest = json.loads((args.kit / "bundles" / args.bundle / "manifest.json").read_text())
    network, example = (table if args.bundle == "payments" else image)(manifest, args.device)
    # The trainer creates small constants on the default device, which torch.compile ignores. So pass the device.
    for name in ("arange", "ones"):
        setattr(torch, name, functools.partial(getattr(torch, name), device=args.device))
    torch.set_grad_enabled(False)
    sizes = {"payments": (256, 4096, 16384), "image256": (1, 16, 64)}[args.bundle]
    if args.tiny:
        sizes = sizes[:1]
    kinds = [("eager", network, False), ("eager, TF32", network, True)]
    if not args.tiny:
        kinds.append(("compiled", torch.compile(network, dynamic=False), False))
        kinds.append(("compiled, CUDA graph", torch.compile(network, dynamic=False, mode="reduce-overhead"), False))
    for name, call, tf32 in kinds:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        for size in sizes:
            rate = measure(call, example(size), args.device, 0.02 if args.tiny else 0.3)
            print(json.dumps({"kind": name, "batch": size, "rows_per_second": rate * size}), flush=True)


def table(manifest, device):
    from residuald_train.tabular.features import check_features
    from residuald_train.tabular.train import Options, fit

    features = check_features(manifest["input"]["features"])
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 2, (512, len(features))).astype(np.float32)
    width = manifest["training"]["options"]["width"]
    scorer = fit(features, rows, Options(recipe="blind", steps=1, width=width), quiet=True).to(device)
    return scorer, lambda n: torch.as_tensor(generator.random((n, len(features)), np.float32), device=device)


def image(manifest, device):
    from residuald_train.images.pixels import Shape
    from residuald_train.images.scorer import Scorer

    given, options = manifest["input"], manifest["training"]["options"]
    shape = Shape(given["height"], given["width"], given["channels"], None)
    scorer = Scorer(shape, tuple(options["widths"]), tuple(options["blocks"])).to(device).eval()
    generator = np.random.default_rng(0)
    sides = shape.height, shape.width, shape.channels
    return scorer, lambda n: torch.as_tensor(generator.integers(0, 256, (n, *sides), np.uint8), device=device)


def measure(call, example, device, seconds):
    """Calls per second over `seconds`, after three warm-up calls. Every call waits until the device has finished."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        call(example)
    wait()
    started, runs = time.perf_counter(), 0
    while runs < 3 or time.perf_counter() - started < seconds:
        call(example)
        wait()
        runs += 1
    return runs / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
