"""What a release says of itself: one version everywhere, and the licenses of all that it depends on."""

import importlib.util
import re
import tomllib
from importlib.metadata import metadata
from itertools import chain
from typing import Any

from code_blocks import ROOT
from packaging.requirements import Requirement

CLASSIFIERS = {  # where metadata have no expression
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: BSD License": "BSD-3-Clause",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
}


def test_every_place_has_the_version_of_core() -> None:
    spec = importlib.util.spec_from_file_location("version", ROOT / "tools" / "version.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    texts = module.updated()
    assert len(texts) == 5
    assert {path: path.read_text(encoding="utf-8") for path in texts} == texts  # or run tools/version.py


def test_every_dependency_has_a_row_and_its_license() -> None:
    users: dict[str, set[str]] = {}
    for path in ROOT.glob("packages/*/pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        package = project["name"].removeprefix("anomnorm-")
        groups = {package: project["dependencies"]}
        groups |= {f"{package}[{extra}]": lines for extra, lines in project["optional-dependencies"].items()}
        for user, lines in groups.items():
            for name in (Requirement(line).name for line in lines):
                users.setdefault(name, set()).add(user)
    del users["anomnorm-core"]
    rows = re.findall(r"^\| (\S+) \| (.+?) \| (.+?) \| .+ \|$", (ROOT / "THIRD_PARTY.md").read_text(), re.MULTILINE)
    table = {name: (license_, set(of.split(", "))) for name, license_, of in rows if name not in ("library", "---")}
    assert table == {name: (_license(name), of) for name, of in users.items()}


def test_every_dependency_has_a_lowest_version() -> None:  # for `nox -s oldest`
    for path in ROOT.glob("packages/*/pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        for line in [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]:
            assert any(each.operator == ">=" for each in Requirement(line).specifier), line


def _license(name: str) -> str:
    """As the installed version says it, in the short form of SPDX."""
    about = metadata(name)
    if expression := about.get("License-Expression"):  # a missing one is None or an error, by who reads it
        return expression
    known = [CLASSIFIERS[line] for line in about.get_all("Classifier") or [] if line in CLASSIFIERS]
    return known[0] if known else about.get("License", "")
