"""Images: a folder of normal images -> a bundle of kind image. `pipeline` runs these modules in this order:

`data` lists the files and splits them, `pixels` decodes, resizes and tiles them. For the recipe `blind`, `corruption`
is the forward process, `unet` the network and `scorer` the graph that the daemon runs; `ddim` has all of these for the
recipe `ddim`. `train` fits either, and `export` makes the bundle.
"""
