"""Models that tables can be drawn from: `residuald-train tabular --generative` adds them to a bundle.

`levels` and `curves` describe one feature each: values that repeat, and values that do not. `space` joins them into the
denoiser's space, and converts raw rows to it and back. `schedule` is the noise, `network` the denoiser, `train` fits it,
`sample` draws rows, `privacy` tells copies of training rows, and `export` makes the bundle's files.
"""
