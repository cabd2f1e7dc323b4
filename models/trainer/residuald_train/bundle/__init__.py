"""The bundle: the folder that the daemon loads, and what is made for it.

`export` turns a model into ONNX and writes the folder; `parity` checks that the graph agrees with torch; `golden` makes
the records with known scores that the daemon proves itself with; `calibrate` describes the scores of normal records;
`served` reads a bundle as the daemon does. `nearest`, `screen` and `quantize` (with `int8`) make what not every bundle
has.
"""
