"""The bundle, which is the folder that the daemon loads, and the code that makes its parts.

`export` turns a model into ONNX and writes the folder. `parity` checks that the graph agrees with torch. `golden` makes
records with known scores, with which the daemon verifies a bundle. `calibrate` describes the scores of normal records.
`served` reads a bundle as the daemon does. `nearest`, `screen` and `quantize` (with `int8`) make optional parts.
"""
