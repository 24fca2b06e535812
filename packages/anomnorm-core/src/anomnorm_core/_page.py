"""The HTML of a report, built as a tree: what is put into it as text is text, whatever it holds."""

from collections.abc import Container, Iterable, Sequence
from importlib.resources import files
from xml.etree.ElementTree import Element, tostring

# Nothing is loaded and nothing is run, also if something in the page should ask for it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def element(tag: str, *content: Element | str, **attributes: str) -> Element:
    """An element with text and others in it. ``class_`` is the attribute ``class``, ``aria_label`` ``aria-label``."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()})
    for part in content:
        if isinstance(part, Element):
            made.append(part)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + part
        else:
            made.text = (made.text or "") + part
    return made


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[Element | str]],
    *,
    texts: Container[int] = (0,),
    marked: Container[int] = (),
    label: str = "",
) -> Element:
    """A table that scrolls in itself where the screen is too narrow for it.

    Args:
        caption: what it shows.
        head: of each column.
        rows: cells; the first one names the row.
        texts: columns that hold words, which stand on the left; numbers stand on the right.
        marked: rows that stand out.
        label: what it is called where its place on the page is not seen; the caption, where that says it all.
    """

    def cells(row: Sequence[Element | str], *, is_head: bool) -> Element:
        made = element("tr")
        for column, cell in enumerate(row):
            kind = {} if column in texts else {"class_": "number"}
            if is_head:
                made.append(element("th", cell, scope="col", **kind))
            elif column == 0:
                made.append(element("th", cell, scope="row", **kind))
            else:
                made.append(element("td", cell, **kind))
        return made

    body = [cells(row, is_head=False) for row in rows]
    for position, row in enumerate(body):
        if position in marked:
            row.set("class", "marked")
    made = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", cells(head, is_head=True)),
        element("tbody", *body),
    )
    # A keyboard has to reach what scrolls.
    return element("div", made, class_="scroll", role="region", aria_label=label or caption, tabindex="0")


def figures(entries: Iterable[tuple[str, str]]) -> Element:
    """A few numbers to be seen first, each with what it is."""
    pairs = [element("div", element("dt", name), element("dd", value)) for name, value in entries]
    return element("dl", *pairs, class_="figures")


def name_of(sample: object) -> Element:
    """A name that came from elsewhere: it is shown as it is, does not turn its line around, and hides nothing."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(sample))
    return element("bdi", shown)


def page(title: str, *content: Element) -> bytes:
    """The whole file."""
    css = files("anomnorm_core").joinpath("report.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Element("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", css),
    )
    whole = element("html", head, element("body", element("main", *content)), lang="en")
    text: bytes = tostring(whole, encoding="utf-8", method="html")
    return b"<!DOCTYPE html>\n" + text + b"\n"
