"""Look into what was built for a release: ``python tools/release.py FOLDER [TAG]`` says what is wrong, and fails.

The folder holds the source distribution and the wheel of each package. Without a tag, that of the commit counts, if it
has one; a tagged commit needs its changelog, too.
"""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from version import ROOT, updated, version

NAMES = ("anomnorm_core", "anomnorm_torch", "anomnorm_jax")
TESTS = re.compile(r"(^|/)(tests?/|test_|conftest)")


def main(folder: Path, tag: str | None) -> list[str]:
    """What is wrong."""
    other = [path for path, text in updated().items() if path.read_text(encoding="utf-8") != text]
    faults = [f"{path.relative_to(ROOT)} has another version: run tools/version.py" for path in other]
    expected = {f"{name}-{version()}{end}" for name in NAMES for end in (".tar.gz", "-py3-none-any.whl")}
    if missing := expected ^ {path.name for path in folder.iterdir()}:
        return [*faults, f"not as expected in {folder}: {sorted(missing)}"]
    for name in NAMES:
        faults += wheel_faults(folder / f"{name}-{version()}-py3-none-any.whl", name)
        faults += source_faults(folder / f"{name}-{version()}.tar.gz", name)
    tags = [tag] if tag else re.findall(r"^v\d.*", git("tag", "--points-at", "HEAD"), flags=re.MULTILINE)
    for found in tags:
        faults += tag_faults(found)
    print(f"version {version()}, {'tag ' + ', '.join(tags) if tags else 'no tag: the changelog may be open'}")
    return faults


def wheel_faults(path: Path, name: str) -> list[str]:
    """The package alone, typed, with its license and what it reads at run time."""
    with zipfile.ZipFile(path) as wheel:
        files = set(wheel.namelist())
    info = f"{name}-{version()}.dist-info"
    needed = {f"{name}/py.typed", f"{name}/_version.py", f"{info}/licenses/LICENSE", f"{info}/METADATA"}
    if name == "anomnorm_core":
        needed |= {f"{name}/report.css", f"{info}/entry_points.txt"}
    strange = [file for file in files if not file.startswith((f"{name}/", f"{info}/")) or TESTS.search(file)]
    return problems(path, needed - files, strange)


def source_faults(path: Path, name: str) -> list[str]:
    """What the wheel is built from, and nothing else."""
    top = path.name.removesuffix(".tar.gz")
    with tarfile.open(path) as archive:
        files = {member.name.removeprefix(f"{top}/") for member in archive.getmembers() if member.isfile()}
    own = {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    needed = own - {".gitignore"} | {f"src/{name}/py.typed"}
    strange = [file for file in files - own if not file.startswith(f"src/{name}/") or TESTS.search(file)]
    return problems(path, needed - files, strange)


def problems(path: Path, missing: set[str], strange: list[str]) -> list[str]:
    return [f"{path.name} lacks {file}" for file in sorted(missing)] + [
        f"{path.name} holds {file}" for file in sorted(strange)
    ]


def tag_faults(tag: str) -> list[str]:
    """A tag is the version, the changelog has that version with a date, and no fragment is left."""
    faults = [] if tag == f"v{version()}" else [f"the tag is {tag}, but the version is {version()}"]
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    own = [heading for heading in headings if heading.split()[0] == version()]
    if len(own) != 1 or not re.fullmatch(r"\S+ \(\d{4}-\d\d-\d\d\)", own[0]):
        faults.append(f"CHANGELOG.md needs one heading '## {version()} (YYYY-MM-DD)'; it has {own}")
    pages = [ROOT / "README.md", *ROOT.glob("docs/start/*.md"), *ROOT.glob("packages/*/README.md")]
    clone = re.compile(r"pip install [^\n]*packages/|not yet released")
    old = [path.relative_to(ROOT) for path in pages if clone.search(path.read_text(encoding="utf-8"))]
    faults += [f"{path} says that there is no release to install" for path in old]
    left = [path.name for path in (ROOT / "changes").iterdir() if path.name != "README.md"]
    return faults + ([f"changes/ still holds {sorted(left)}: run towncrier build"] if left else [])


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    found = main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
    sys.exit("\n".join(found) if found else 0)
