"""A few lines about an object: as text, and as HTML for notebooks."""

import html


class Summary:
    """Gives a class a `repr` of a few lines and a table in notebooks, from its `_summary`."""

    def _summary(self) -> dict[str, str]:
        """Lines of text by their names."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return "\n".join([type(self).__name__, *(f"  {name}: {text}" for name, text in self._summary().items())])

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in self._summary().items())
        return f"<table><caption>{type(self).__name__}</caption>{''.join(rows)}</table>"
