"""What people look at: `card` is the model card, drawn with `plots` and written by `pages` from `templates/`; `sheet`
draws contact sheets of images."""
