"""Renders Jinja2 templates, with every value escaped, and reads style sheets and scripts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent
ENVIRONMENT = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: object) -> Markup:
    """Fill a template of ``templates/``; values that are not :class:`Markup` are escaped."""
    return Markup(ENVIRONMENT.get_template(template).render(values))


@cache
def static(name: str) -> Markup:
    """The content of a file of ``static/``."""
    return Markup((FOLDER / "static" / name).read_text(encoding="utf-8"))
