"""Measures detection on labelled data, beside simpler methods.

Tables: `tabular` trains and measures on the sets that `datasets` reads and splits, beside `tabular_peers`;
`result_tables` writes the results as Markdown, `quality_page` as HTML. Images: `images`, beside `image_peers`. Both use
the measures in `metrics`.
"""
