"""Images: a folder of normal pictures -> a bundle of kind image.

The modules in the order a picture meets them: `data` lists files, `pixels` decodes, resizes and tiles, `corrupt` is the
forward process, `unet` the network, `scorer` the graph that the daemon runs, `train` fits it, `sheet` draws what it
does, `export` writes the bundle, `metrics`, `peers` and `bench` measure it; `ddim` is the classical recipe.
"""
