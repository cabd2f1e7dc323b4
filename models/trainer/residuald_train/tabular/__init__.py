"""Tables: files of records -> a bundle of kind tabular. `pipeline` runs these modules in this order:

`data` reads files into columns, `labels` separates normal rows, `schema_inference` guesses the features, `features`
encodes records as rows, by the rules of `decode`, which the daemon shares. `contamination` leaves out suspected
anomalies. `recipes` says what a score is made of: the denoisers in `coreset`, `diffusion` and `ddim`, on `network`.
`train` fits them, `scorer` is the graph that the daemon runs, and `export` makes the bundle.
"""
