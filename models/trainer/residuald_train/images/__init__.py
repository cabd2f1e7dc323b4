"""Training on images: turns a folder of normal images into a bundle of kind image. `pipeline` runs these modules:

`data` lists and splits the files. `pixels` decodes, resizes and tiles them. For the recipe `blind`, `corruption` is the
forward process, `unet` the network and `scorer` the graph that the daemon runs. For the recipe `ddim`, all of these are
in `ddim`. `train` fits either recipe, and `export` makes the bundle.
"""
