"""Measures detection on labelled data and compares it with simpler methods.

For records, `datasets` reads and splits the data sets, `tabular` trains and measures recipes and the simpler methods of
`tabular_peers`, `result_tables` writes the results as Markdown, and `quality_page` writes them as HTML. For images,
`images` trains and measures recipes and the simpler methods of `image_peers`. Both use `metrics`.
"""
