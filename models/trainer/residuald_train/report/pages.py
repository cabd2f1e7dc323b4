"""HTML pages in one file without external resources, from `templates/`."""

import jinja2


def render(template, facts, filters=None):
    """`facts`: the template's variables; `filters`: {name: function}."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("residuald_train.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters or {}
    return environment.get_template(template).render(facts)
