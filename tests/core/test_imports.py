"""What each package loads, what it offers, and that the three of them use one vocabulary."""

import ast
import json
import subprocess
import sys
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

_SOURCES = sorted((Path(__file__).parents[2] / "packages").rglob("*.py"))
_FRAMEWORKS = {"torch", "torchmetrics", "lightning", "pytorch_lightning", "jax", "jaxlib", "flax", "matplotlib", "PIL"}
_PACKAGES = ["anomnorm_core", "anomnorm_torch", "anomnorm_jax"]


@lru_cache
def _loaded_by(statement: str) -> frozenset[str]:
    """Top-level names of the modules that a fresh interpreter holds after ``statement``."""
    report = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    command = [sys.executable, "-P", "-c", f"{statement}\n{report}"]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert process.returncode == 0, process.stderr
    return frozenset(json.loads(process.stdout.splitlines()[-1]))


def test_core_loads_no_framework() -> None:
    assert not _loaded_by("import anomnorm_core, anomnorm_core.fields, anomnorm_core.checks") & _FRAMEWORKS


def test_core_computes_without_a_framework() -> None:
    # erfc is imported on first use
    loaded = _loaded_by("import numpy, anomnorm_core as a; a.cdf.normalize(numpy.ones(2), 1.0, 0.0, 1.0)")
    assert "scipy" in loaded
    assert not loaded & _FRAMEWORKS


def test_torch_package_does_not_load_jax() -> None:
    loaded = _loaded_by("import anomnorm_torch; anomnorm_torch.MinMaxNormalizationCallback")
    assert "torch" in loaded
    assert not loaded & {"jax", "jaxlib", "flax"}


def test_jax_package_does_not_load_torch_or_flax() -> None:
    loaded = _loaded_by("import anomnorm_jax")
    assert "jax" in loaded
    assert not loaded & (_FRAMEWORKS - {"jax", "jaxlib"})


def test_torch_package_loads_lightning_only_when_a_callback_is_asked_for() -> None:
    slow = {"pytorch_lightning", "lightning", "torchmetrics"}
    assert not _loaded_by("import anomnorm_torch; dir(anomnorm_torch)") & slow
    loaded = _loaded_by("import anomnorm_torch; anomnorm_torch.MinMaxNormalizationCallback")
    assert {"pytorch_lightning", "torchmetrics"} <= loaded


def test_torch_metrics_do_not_load_lightning() -> None:
    loaded = _loaded_by("import anomnorm_torch; anomnorm_torch.MinMax")
    assert "torchmetrics" in loaded
    assert not loaded & {"pytorch_lightning", "lightning"}


@pytest.mark.parametrize(
    "module",
    [
        *_PACKAGES,
        "anomnorm_core._arrays",
        "anomnorm_core.plot",
        "anomnorm_torch.callbacks",
        "anomnorm_torch.lightning",
        *(f"{package}.{part}" for package in _PACKAGES for part in ("methods", "threshold")),
    ],
)
def test_every_public_name_resolves_and_is_listed(module: str) -> None:
    found = import_module(module)
    missing = [name for name in found.__all__ if not hasattr(found, name)]
    assert not missing
    assert len(set(found.__all__)) == len(found.__all__)
    assert set(found.__all__) <= set(dir(found))


def test_an_unknown_name_is_an_attribute_error() -> None:
    for package in _PACKAGES:
        assert not hasattr(import_module(package), "no_such_name")


def _vocabulary(module: str) -> list[tuple[str, list[str]]]:
    """Public functions of a module in order, each with its positional parameters; classes have none."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return [
        (node.name, [argument.arg for argument in node.args.args] if isinstance(node, ast.FunctionDef) else [])
        for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]


@pytest.mark.parametrize(
    ("module", "some"),
    [
        ("methods.min_max", "normalize"),
        ("methods.two_slope", "normalize"),
        ("methods.cdf", "standardize"),
        ("methods.normal", "standardize"),
        ("threshold.decision", "flag"),
        ("threshold.histogram", "update"),
    ],
)
def test_modules_define_the_same_names_in_the_same_order_in_all_packages(module: str, some: str) -> None:
    core, torch, jax = (_vocabulary(f"{package}.{module}") for package in _PACKAGES)
    assert some in [name for name, _ in core]
    # What is computed once, on the host, is core's alone.
    hosts = {"raw_threshold", "sigmas", "check", "constant", "lower_edge", "float32_at_or_above", "float32_beyond"}
    wanted = [entry for entry in core if entry[0] not in hosts]
    for package in (torch, jax):
        assert [entry for entry in package if entry[0] in {name for name, _ in wanted}] == wanted


@pytest.mark.clause("P1")
def test_no_source_file_uses_pickle() -> None:
    assert len(_SOURCES) > 20
    found = [
        f"{path}:{getattr(node, 'lineno', '?')}: {word}"
        for path in _SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for word in _words(node)
        if "pickle" in word.split(".") or word.split(".")[0] in {"cloudpickle", "dill", "joblib", "shelve", "marshal"}
    ]
    assert not found


def _words(node: ast.AST) -> list[str]:
    """The names that a node imports or uses."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module)):
            return [module]
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return [name]
        case ast.keyword(arg="allow_pickle", value=value) if not (isinstance(value, ast.Constant) and not value.value):
            return ["pickle"]
        case ast.keyword(arg="weights_only", value=ast.Constant(value=False)):
            return ["pickle"]  # torch.load
    return []
