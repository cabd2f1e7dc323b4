"""Tabular training: turns files of records into a bundle of kind tabular. `pipeline` runs these modules in this order:

`data` reads files, `labels` separates normal rows, and `features` infers the schema and encodes records as rows. All
three use the daemon's own code, the package `residuald`. `contamination` leaves out suspected anomalies. `recipes`
defines how a score combines the denoisers of `coreset`, `diffusion` and `ddim`; the trained ones are built on
`network`. `ranks` is a second space, in which the kernel also judges. `train` fits them, `scorer` is the graph that the
daemon runs, and `export` makes the bundle.
"""
