"""Tables: files of records -> a bundle of kind tabular. `pipeline` runs these modules in this order:

`data` reads files, `labels` separates normal rows, `features` guesses the schema and encodes records as rows; all three
by the daemon's own code, the package `residuald`. `contamination` leaves out suspected anomalies. `recipes` says what a
score is made of: the denoisers in `coreset`, `diffusion` and `ddim`, on `network`. `train` fits them, `scorer` is the
graph that the daemon runs, and `export` makes the bundle.
"""
