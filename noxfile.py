"""Sessions for development and continuous integration; ``nox -l`` lists them, plain ``nox`` runs all verdicts."""

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
# uv would not find the CPU build of torch that the constraints file asks for.
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "typing", "tests", "conformance", "build"]

PACKAGES = [f"packages/anomnorm-{name}" for name in ("core", "torch", "jax")]
CONSTRAINTS = ("-c", "constraints.txt")
TEST_DEPENDENCIES = (
    "array-api-strict",
    "flax",
    "matplotlib",
    "mpmath",
    "optax",
    "pytest",
    "pytest-xdist",
    "scikit-learn",
)
TYPED = ["packages/anomnorm-core/src", "packages/anomnorm-torch/src", "packages/anomnorm-jax/src"]
# One environment for the sessions that need torch and jax: installing them is the slow part.
SHARED = {"venv_location": ".nox/development", "reuse_venv": True}


def _install_development(session: nox.Session, *more: str) -> None:
    editable = [argument for package in PACKAGES for argument in ("-e", package)]
    session.install(*CONSTRAINTS, *editable, *TEST_DEPENDENCIES, *more)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting (ruff)."""
    session.install(*CONSTRAINTS, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(**SHARED)
def typing(session: nox.Session) -> None:
    """Check types (mypy strict, pyright)."""
    _install_development(session, "mypy", "pyright[nodejs]")
    for source in TYPED:
        session.run("mypy", source)
    session.run("pyright", "--pythonpath", f"{session.bin}/python", *TYPED)


@nox.session(**SHARED)
def tests(session: nox.Session) -> None:
    """Run the unit tests of the three packages, the README's code and the demo."""
    _install_development(session)
    default = ("tests/core", "tests/torch", "tests/jax", "tests/docs")
    session.run("pytest", "-n", "2", *(session.posargs or default))


@nox.session(**SHARED)
def conformance(session: nox.Session) -> None:
    """Prove that all backends compute the same; ``-- --backends jax`` for one."""
    _install_development(session)
    session.install("--no-deps", "--force-reinstall", "tests/conformance/toy_plugin")
    only = [] if session.posargs else ["tests/conformance/test_suite.py"]
    arguments = ["--ignore=tests/conformance/test_suite.py", *session.posargs]
    session.run("pytest", "-n", "2", "--dist", "worksteal", "tests/conformance", *arguments)
    if only:
        session.run("pytest", "-n", "2", *only)


@nox.session(**SHARED)
def demo(session: nox.Session) -> None:
    """Detect anomalous handwritten digits with both frameworks and both normalizations."""
    _install_development(session)
    session.run("python", "examples/digits/demo.py", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheels, install them into an empty environment and import them."""
    wheels = Path(session.create_tmp()).resolve()
    for old in wheels.glob("*.whl"):
        old.unlink()
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), *PACKAGES)
    built = {wheel.name.split("-")[0]: str(wheel) for wheel in wheels.glob("*.whl")}
    with session.chdir(wheels):  # away from the sources
        root = Path(__file__).parent
        constraints = ("-c", str(root / "constraints.txt"))
        session.install(*constraints, built["anomnorm_core"])
        session.run("python", "-c", "import anomnorm_core as a; print('anomnorm-core', a.__version__)")
        session.install(*constraints, *built.values())
        for name in ("anomnorm_torch", "anomnorm_jax"):
            session.run("python", "-c", f"import {name} as a; [getattr(a, n) for n in a.__all__]; print(a.__version__)")
        session.run("pip", "check")
