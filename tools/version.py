"""The version of the three packages, which core's ``_version.py`` has: this writes it to the other places.

Edit that file, then run ``python tools/version.py``. There are copies because a package is also built from its own
source distribution, where no file of the others is. A test compares them.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def version() -> str:
    """The version of the three packages."""
    text = (ROOT / "packages/anomnorm-core/src/anomnorm_core/_version.py").read_text(encoding="utf-8")
    match = re.search(r'__version__ = "(\d+\.\d+\.\d+)"', text)
    if match is None:
        raise ValueError("anomnorm_core/_version.py has no version such as 1.2.3.")
    return match[1]


def updated() -> dict[Path, str]:
    """The texts of the other places, as they have to be."""
    now = version()
    major, minor, _ = now.split(".")
    texts = {ROOT / "CITATION.cff": (r"^version: .*$", f"version: {now}")}
    for name in ("torch", "jax"):
        package = ROOT / f"packages/anomnorm-{name}"
        texts[package / f"src/anomnorm_{name}/_version.py"] = (r"__version__ = .*", f'__version__ = "{now}"')
        # Released together, used together: a package may need what core has since its last release.
        core = f'"anomnorm-core>={now},<{major}.{int(minor) + 1}"'
        texts[package / "pyproject.toml"] = (r'"anomnorm-core>=[^"]*"', core)
    found = {}
    for path, (pattern, text) in texts.items():
        found[path], count = re.subn(pattern, text, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{path} has {count} places for the version instead of one.")
    return found


if __name__ == "__main__":
    for place, text in updated().items():
        place.write_text(text, encoding="utf-8")
        print(place.relative_to(ROOT), version())
