"""Models that tables can be drawn from: `residuald-train tabular --generative` adds them to a bundle.

`curves` and `blocks` describe one feature each. `space` joins them into the denoiser's space, and converts raw rows to
it and back. `schedule` is the noise, `network` the denoiser, `train` fits it, `sample` draws rows, `privacy` finds
copies of training rows, `export` makes the bundle's files, and `pipeline` runs all of it.
"""
