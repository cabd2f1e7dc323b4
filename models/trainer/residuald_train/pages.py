"""Pages of one file that load nothing, from `templates/`."""

import jinja2


def render(template, facts, filters=None):
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("residuald_train"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters or {}
    return environment.get_template(template).render(facts)
