"""A report as its readers find it: parsed, checked, and its tables by what they are called."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """A page that is well-formed, asks for nothing, and has each id once; its tables by what they are called."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._open: list[str] = []
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<!DOCTYPE html>")
        self.feed(text)
        self.close()
        assert not self._open
        assert "://" not in text
        self._check()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = list[list[str]]()
        if tag == "div" and ("role", "region") in attrs:
            self._label = dict(attrs)["aria-label"]
        if tag == "tr":
            self._rows.append([])
        if tag in ("th", "td"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self.tables[self._label] = self._rows

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if {"th", "td"} & set(self._open):
            self._rows[-1][-1] += data

    def _check(self) -> None:
        ids = [value for _, name, value in self.attributes if name == "id"]
        assert len(set(ids)) == len(ids)
        links = [value for _, name, value in self.attributes if name in ("src", "href")]
        assert all(link.startswith("data:image/png") or link.removeprefix("#") in ids for link in links)
        inner = [v.partition("url(#")[2].partition(")")[0] for _, _, v in self.attributes if "url(#" in v]
        assert set(inner) <= set(ids)
        assert not any(name.startswith("on") for _, name, _ in self.attributes)
        assert not {"script", "iframe", "link", "img", "object"} & set(self.tags)
        headings = [int(tag[1]) for tag in self.tags if tag in ("h1", "h2", "h3")]
        assert headings[0] == 1
        assert headings.count(1) == 1
        assert max(np.diff(headings), default=0) <= 1

    def column(self, table: str, name: str) -> dict[str, str]:
        """The cells of a column by the names of the rows."""
        head, *rows = self.tables[table]
        return {row[0]: row[head.index(name)] for row in rows}

    def numbers(self, table: str, name: str) -> dict[str, float]:
        return {row: float(cell.rstrip("%")) for row, cell in self.column(table, name).items()}
