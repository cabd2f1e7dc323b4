"""Tabular training: turns files of records into a bundle of kind tabular. `pipeline` runs these modules in this order:

`data` reads files into columns. `labels` separates normal rows. `schema_inference` infers the features. `features`
encodes records as rows by the rules of `decode`, which the daemon shares. `contamination` leaves out suspected
anomalies. `recipes` defines how a score combines the denoisers of `coreset`, `diffusion` and `ddim`; the trained ones
are built on `network`. `train` fits them, `scorer` is the graph that the daemon runs, and `export` makes the bundle.
"""
