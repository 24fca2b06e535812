"""Docstrings as they are meant, where Sphinx reads them otherwise.

Of attributes and properties Napoleon takes what stands before a colon for a type. ``#: () int64: valid values seen`` is
a sentence here, and a property may have sections like any function.
"""

from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring


def keep_colons(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Parse the sections of such a docstring, and break its first line at the colon, where Napoleon sees none then."""
    if what not in ("attribute", "data", "property") or not lines:
        return
    parsed = GoogleDocstring(lines, app.config, app, "function", name, obj, options).lines()
    before, colon, after = parsed[0].partition(": ")
    lines[:] = [before + ":", after, *parsed[1:]] if colon else parsed


def signature(
    _app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, arguments: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    """Write the default of a dataclass's field that is made anew each time so that it can be parsed."""
    if arguments is None or "<factory>" not in arguments:
        return None
    return arguments.replace("<factory>", "..."), returned


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension, before Napoleon."""
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
