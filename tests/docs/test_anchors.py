"""Links to a heading lead to one: in README and others outside of the site too, whose links Sphinx does not see."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

from code_blocks import PAGES, ROOT

LINK = re.compile(r"\]\(((?:[^)#\s]+\.md)?)#([^)\s]+)\)")


@cache
def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub and the site make them."""
    found, seen = set(), Counter[str]()
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M):
        text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def test_every_anchor_is_a_heading() -> None:
    links = [
        (page, target, anchor)
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
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
