"""Links to the sections of a page that a program writes: such pages are long."""

import re


def with_contents(page: str) -> str:
    """The page with a list of its sections above the first of them."""
    headings = re.findall(r"^## (.+)$", page, flags=re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    links = [f"- [{heading}](#{anchor})" for heading, anchor in zip(headings, anchors, strict=True)]
    before, first, after = page.partition("\n## ")
    return "\n".join([before, *links, ""]) + first + after
