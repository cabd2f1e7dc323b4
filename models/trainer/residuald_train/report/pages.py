"""Renders HTML pages from `templates/`, each as one file without external resources."""

import jinja2


def render(template, facts, filters=None):
    """Renders a template -> HTML. `facts`: the template's variables. `filters`: {name: function} for Jinja."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("residuald_train.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters or {}
    return environment.get_template(template).render(facts)
