"""Compares three estimates of a segment's p-values on synthetic scores.

    python benches/segments.py

All three mix the segment's own n scores with information from all segments, which counts as much as k scores.

A simulated calibration has five segments of each size and four of 8,000 records. Scores are lognormal. The scales of
the segments differ by a factor exp(spread * N(0, 1)), and the standard deviations of the logarithms (0.5) by 15 %. Each
segment gets a threshold from the calibration. The share of fresh normal records above it is then known exactly. The
tables show the mean of |log10(share flagged / requested share)|, with the ratio bounded below by 1/100: 0.3 means wrong
by a factor of two, and 2 means that the segment never flags. Takes a minute and needs only NumPy.

p_all is the conformal p-value among all scores. p_shape is the conformal p-value among all scores after each is divided
by the median of its segment.

    conformal  (n (1 + #{own >= x}) / (n + 1) + k p_all(x)) / (n + k)
    counts     (#{own >= x} + k p_all(x)) / (n + k)
    shape      (#{own >= x} + k p_shape(x / median)) / (n + k)

Result for spread 0.5, averaged over all sizes:

    rate   form       k = 0    20    50   200  1000   inf
    0.01   conformal   0.63  0.83  0.86  0.88  1.04  1.25
    0.01   counts      0.25  0.46  0.57  0.79  1.02  1.25
    0.01   shape       0.25  0.19  0.18  0.20  0.27  0.38
    0.001  conformal   1.36  1.55  1.58  1.64  1.54  1.49
    0.001  counts      0.65  0.80  0.96  1.16  1.34  1.49
    0.001  shape       0.65  0.37  0.38  0.45  0.55  0.72

For `conformal` and `counts`, k = inf is one threshold for all segments. With `conformal`, p is at least 1 / (n + k), so
a segment with fewer than 1 / rate - k records never flags anything. Mixing in p_all makes segments with low scores flag
too rarely, because p_all is large in their tail. `shape` has neither fault and does not depend on the spread.
residuald uses it with k = 50.
"""

import math

import numpy as np

SIZES = 20, 50, 100, 200, 500, 1000, 2000, 5000
BORROWED = 0, 20, 50, 200, 1000, math.inf
FORMS = "conformal", "counts", "shape"
SPREADS, RATES, ROUNDS = (0.2, 0.5, 1.0), (0.01, 0.001), 8


def share_above(x, location, width):
    """P(X > x) of a lognormal X."""
    return 0.5 * math.erfc((math.log(max(x, 1e-30)) - location) / width / math.sqrt(2))


def conformal(sample):
    """Returns a function that maps x to the conformal p-value, in the sorted sample, of a score just above x."""
    return lambda x: (1 + len(sample) - np.searchsorted(sample, x, "right")) / (len(sample) + 1)


def one_round(rng, spread, rate, errors):
    segments = []
    for n in [n for n in SIZES for _ in range(5)] + [8000] * 4:
        location, width = rng.normal(0, spread), 0.5 * math.exp(rng.normal(0, 0.15))
        segments.append((location, width, np.sort(np.exp(location + width * rng.standard_normal(n)))))
    everything = np.sort(np.concatenate([own for *_, own in segments]))
    shape = np.sort(np.concatenate([own / np.median(own) for *_, own in segments]))
    p_all, p_shape = conformal(everything), conformal(shape)
    for location, width, own in segments[:-4]:
        n, median = len(own), np.median(own)
        x = np.unique(np.concatenate([own, everything, shape * median]))
        at_least = n - np.searchsorted(own, x, "right")
        near, far = p_shape(x / median * (1 + 1e-12)), p_all(x)
        for k in BORROWED:
            weight = 1 / (1 + n / k) if k else 0
            for form, mine, borrowed in [
                ("conformal", (1 + at_least) / (n + 1), far),
                ("counts", at_least / n, far),
                ("shape", at_least / n, near),
            ]:
                rare = np.flatnonzero((1 - weight) * mine + weight * borrowed <= rate * (1 + 1e-9))
                share = share_above(x[rare[0]], location, width) if len(rare) else 0
                errors.setdefault((form, k, n), []).append(abs(math.log10(max(share / rate, 0.01))))


def main():
    print("| spread | rate | form |", *(f"k = {k} |" for k in BORROWED))
    print("| --- | --- | --- |", *("--- |" for _ in BORROWED))
    by_size = {}
    for spread in SPREADS:
        for rate in RATES:
            errors, rng = {}, np.random.default_rng(0)
            for _ in range(ROUNDS):
                one_round(rng, spread, rate, errors)
            for form in FORMS:
                means = [np.mean([np.mean(errors[form, k, n]) for n in SIZES]) for k in BORROWED]
                print(f"| {spread} | {rate} | {form} |", *(f"{mean:.2f} |" for mean in means), flush=True)
            for key, values in errors.items():
                by_size.setdefault(key, []).extend(values)
    print("\n| records | conformal, 200 | counts, 50 | one threshold | shape, 0 | shape, 50 |\n" + "| --- " * 6 + "|")
    for n in SIZES:
        keys = [("conformal", 200), ("counts", 50), ("counts", math.inf), ("shape", 0), ("shape", 50)]
        print(f"| {n} |", *(f"{np.mean(by_size[*key, n]):.2f} |" for key in keys))


if __name__ == "__main__":
    main()
