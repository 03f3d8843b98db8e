"""How objects are shown in a notebook."""

from collections.abc import Mapping
from html import escape

__all__ = ["Sentence", "facts"]


def facts(title: str, named: Mapping[str, object]) -> str:
    """A title and named facts, as HTML.

    Example:
        >>> facts("VAE", {"latents": 2})
        '<strong>VAE</strong><table style="text-align:left"><tr><th>latents</th><td>2</td></tr></table>'
    """
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in named.items())
    return f'<strong>{escape(title)}</strong><table style="text-align:left">{"".join(rows)}</table>'


class Sentence:
    """Base class of objects that a notebook shows as the sentence of their ``str``."""

    def _repr_html_(self) -> str:
        return f"<p>{escape(str(self))}</p>"
