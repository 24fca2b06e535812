"""Links lead to a file and a heading: in README and others outside of the site too, whose links Sphinx does not see."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

from code_blocks import PAGES, ROOT

OTHERS = [ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY", "THIRD_PARTY", "changes/README")]
LONG = 1_200  # words
LINK = re.compile(r"\]\(((?:[^)#\s]+\.md)?)#([^)\s]+)\)")


@cache
def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub and the site make them."""
    found, seen = set(), Counter[str]()
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M):
        anchor = slug(heading)
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def slug(heading: str) -> str:
    text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def test_every_anchor_is_a_heading() -> None:
    links = [
        (page, target, anchor)
        for page in [*PAGES, *OTHERS]
        for target, anchor in LINK.findall(page.read_text())
        if "://" not in target
    ]
    assert len(links) > 50
    broken = [
        f"{page.relative_to(ROOT)}: {target}#{anchor}"
        for page, target, anchor in links
        if anchor not in anchors((page.parent / target).resolve() if target else page)
    ]
    assert not broken


def test_every_link_leads_to_a_file() -> None:
    links = [(page, link) for page in [*PAGES, *OTHERS] for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    broken = [(page.name, link) for page, link in links if "://" not in link and not (page.parent / link).exists()]
    assert len(links) > 100
    assert not broken


def test_long_pages_begin_with_links_to_their_sections() -> None:
    long = {page: page.read_text() for page in [*PAGES, *OTHERS] if len(page.read_text().split()) > LONG}
    assert len(long) > 5
    for page, text in long.items():
        listed = {anchor for target, anchor in LINK.findall(text.partition("\n## ")[0]) if not target}
        sections = re.findall(r"^## (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
        assert listed >= {slug(section) for section in sections}, page
