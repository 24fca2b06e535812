"""Every public name has a docstring and a place in the API reference. Nothing is imported: the sources are read.

Public is what a package's ``__all__`` lists and, of the modules in it, theirs; and what pages and examples import.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from code_blocks import PAGES, ROOT, programs

PACKAGES = {f"anomnorm_{name}": ROOT / "packages" / f"anomnorm-{name}" / "src" for name in ("core", "torch", "jax")}
DIRECTIVE = re.compile(r"^\.\. (?:auto|py:)(module|class|function|data|exception):: (\S+)\n(\s+:members:$)?", re.M)
VERSION = "__version__"  # the one that needs no docstring


@cache
def source_of(module: str) -> Path | None:
    path = PACKAGES.get(module.partition(".")[0], ROOT / "nowhere").joinpath(*module.split("."))
    return next((each for each in (path / "__init__.py", path.with_suffix(".py")) if each.is_file()), None)


@cache
def names_of(module: str) -> dict[str, ast.stmt]:
    """The statement that each name of a module comes from; imports that wait for their use are among them."""
    path, found = source_of(module), {}
    assert path is not None, f"there is no module {module}"
    body = ast.parse(path.read_text()).body
    blocks = [each.body for each in body if isinstance(each, ast.If | ast.Try)]
    for node in [*(each for block in blocks for each in block), *body]:
        if isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
    return found


@cache
def exported(module: str) -> list[str]:
    """``__all__`` or, without it, the classes and functions of a module that do not begin with an underscore."""
    names = names_of(module)
    if isinstance(names.get("__all__"), ast.Assign):
        return [name for name in ast.literal_eval(names["__all__"].value) if name != VERSION]
    own = ast.ClassDef | ast.FunctionDef
    return [name for name, node in names.items() if isinstance(node, own) and not name.startswith("_")]


@cache
def origin(name: str) -> str:
    """Where a name is defined: ``anomnorm_core.Fit`` is ``anomnorm_core.fit.Fit``."""
    if source_of(name):
        return name
    module, _, last = name.rpartition(".")
    node = names_of(module).get(last)
    assert node is not None, f"{name}: there is no such name"
    if isinstance(node, ast.ImportFrom) and str(node.module).startswith("anomnorm_"):
        return origin(f"{node.module}.{next(each.name for each in node.names if (each.asname or each.name) == last)}")
    return name


def has_docstring(name: str) -> bool:
    if source := source_of(name):
        return bool(ast.get_docstring(ast.parse(source.read_text())))
    module, _, last = name.rpartition(".")
    node = names_of(module)[last]
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        copied = any(ast.unparse(each).startswith("__doc__ = ") for each in node.body)
        return copied or bool(ast.get_docstring(node))
    if isinstance(getattr(node, "value", None), ast.Attribute):  # a function of something that was made
        return True
    lines = Path(str(source_of(module))).read_text().splitlines()
    return lines[node.lineno - 2].startswith("#:") or "#: " in lines[node.lineno - 1]


def public() -> set[str]:
    found, modules = set(), list(PACKAGES)
    for module in modules:
        inside = [f"{module}.{name}" for name in exported(module)]
        found |= {module, *inside}
        modules += [each for each in map(origin, inside) if source_of(each) and each not in modules]
    code = [program for page in PAGES for anomalib in (False, True) for program in programs(page, anomalib=anomalib)]
    for program in [*code, *(path.read_text() for path in sorted(ROOT.glob("examples/**/*.py")))]:
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom) and source_of(str(node.module)):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def documented() -> set[str]:
    """What the pages of the API reference have, by origin."""
    found: set[str] = set()
    for page in ROOT.glob("docs/reference/api/**/*.md"):
        for kind, name, members in DIRECTIVE.findall(page.read_text()):
            found.add(origin(name))
            if kind == "module" and members:
                found |= {origin(f"{name}.{each}") for each in exported(name)}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring(package: str) -> None:
    names = {origin(name) for name in public() if name.startswith(package)}
    assert len(names) > 10
    assert not sorted(name for name in names if not has_docstring(name))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_api_reference(package: str) -> None:
    pages = documented()
    missing = sorted(name for name in public() if name.startswith(package) and origin(name) not in pages)
    assert not missing, "put them on a page of docs/reference/api (autoclass, autofunction, automodule with :members:)"
