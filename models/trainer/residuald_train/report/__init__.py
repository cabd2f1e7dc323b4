"""Reports for people: the model card (`card`, with `plots` and `pages`) and contact sheets of images (`sheet`)."""
