"""Sessions for development and continuous integration: ``nox -l`` lists them, plain ``nox`` runs the usual ones."""

import hashlib
import shutil
import sys
from itertools import chain
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.2.9"
# uv would not find the CPU build of torch that the constraints file asks for.
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "typing", "tests", "conformance", "build"]

ROOT = Path(__file__).parent
PACKAGES = [f"packages/anomnorm-{name}" for name in ("core", "torch", "jax")]
SOURCES = [f"{package}/src" for package in PACKAGES]
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))
GOLDEN = ROOT / "tests" / "core" / "golden" / "cdf_v1.safetensors"
SMOKE = str(ROOT / "tools" / "smoke.py")
DEVELOPMENT_TOOLS = (
    "array-api-strict",
    "dask",
    "distributed",
    "flatbuffers",  # jax.export writes with it
    "flax",
    "hypothesis",
    "jsonargparse[signatures]<4.47",  # LightningCLI needs it; anomalib 2.7 no later one
    "lightning",
    "matplotlib",
    "mpmath",
    "mypy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optax",
    "orbax-checkpoint",
    "pyarrow",
    "pyright[nodejs]",
    "pytest",
    "pytest-xdist",
    "scikit-image",  # a photograph for the examples
    "scikit-learn",
    "tensorboardX",
)


# What is freed stays with the process while times are measured: page faults would otherwise be most of them, of
# formulas that make many intermediate results above all. (Older glibc refuses a larger threshold of the first kind.)
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def _development(session: nox.Session, *more: str) -> str:
    """Install everything into one environment, and return its interpreter.

    The sessions that need torch and jax share it: installing those is the slow part.
    """
    environment = ROOT / ".nox" / "development"
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        session.run(sys.executable, "-m", "virtualenv", "--quiet", str(environment), external=True)
    editable = [argument for package in PACKAGES for argument in ("-e", package)]
    pip = (str(python), "-m", "pip", "install", "--quiet", *CONSTRAINTS)
    # Asking pip takes a while each time: only where what is asked for has changed.
    asked = hashlib.sha256(repr((ROOT, *editable, *DEVELOPMENT_TOOLS)).encode())
    for path in (ROOT / "constraints.txt", *(ROOT / package / "pyproject.toml" for package in PACKAGES)):
        asked.update(path.read_bytes())
    installed = environment / "installed.sha256"
    if not installed.exists() or installed.read_text() != asked.hexdigest():
        session.run(*pip, *editable, *DEVELOPMENT_TOOLS, external=True)
        installed.write_text(asked.hexdigest())
    if more:
        session.run(*pip, *more, external=True)
    return str(python)


def _pytest(session: nox.Session, python: str, *arguments: str, **more: str) -> None:
    """Run tests on all cores, each worker with one thread, and keep what compilers make for the next run.

    Tests of one group (``xdist_group``) share what is expensive, so one worker takes them.
    """
    cache = ROOT / ".nox" / "cache"
    environment = {
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        **more,
    }
    workers = ("-n", "auto", "--dist", "loadgroup", "--no-loadscope-reorder")
    session.run(python, "-m", "pytest", *workers, *arguments, env=environment, external=True)


def _chosen(session: nox.Session, *default: str) -> tuple[str, ...]:
    """The arguments of the session, which may name tests, or those of ``default``."""
    named = any(argument.startswith("tests/") for argument in session.posargs)
    return (*(() if named else default), *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting (ruff)."""
    session.install(*CONSTRAINTS, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(venv_backend="none")
def typing(session: nox.Session) -> None:
    """Check types (mypy strict, pyright)."""
    python = _development(session)
    session.run(python, "-m", "mypy", *SOURCES)
    session.run(python, "-m", "pyright", "--pythonpath", python, *SOURCES)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the unit tests of the three packages, the code blocks of README and docs, and the demo."""
    python = _development(session)
    # What takes longest comes first, so that no worker waits for it in the end.
    default = ("tests/jax", "tests/docs", "tests/interchange", "tests/torch", "tests/core")
    # How fast a program runs is no matter here, and numbers are compared where the compiler does its whole work.
    quick = {} if "--full" in session.posargs else {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    _pytest(session, python, *_chosen(session, *default), **quick)


@nox.session(venv_backend="none")
def conformance(session: nox.Session) -> None:
    """Prove that all backends compute the same; ``-- --full`` all directly, ``--backends jax`` one, ``--deep`` more."""
    python = _development(session, "--no-deps", "--force-reinstall", "tests/conformance/toy_plugin")
    # The suite tests itself where it runs as a whole.
    some = any(argument.startswith("--backends") for argument in session.posargs)
    without = ("--ignore=tests/conformance/test_suite.py",) if some else ()
    _pytest(session, python, *without, *_chosen(session, "tests/conformance"))


@nox.session(venv_backend="none")
def full(session: nox.Session) -> None:
    """Run the whole matrix, for nights and releases: all backends directly on all dtypes, and the slow tests."""
    if session.posargs:
        session.error("it takes no arguments; for a part of it: nox -s conformance -- --full --backends numpy")
    session.notify("tests", ["--full"])
    session.notify("conformance", ["--full"])


def _declared(package: str) -> list[Requirement]:
    """What a package asks for, and what its extras do, but for the packages of this repository."""
    project = nox.project.load_toml(ROOT / package / "pyproject.toml")["project"]
    lines = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    found = [Requirement(line) for line in lines]
    return [requirement for requirement in found if not requirement.name.startswith("anomnorm-")]


def _alone(session: nox.Session, package: str, *, lowest: bool) -> None:
    """Install a package, core and all extras, with the lowest versions that they declare or the newest there are.

    What else the tests need has the versions of development.
    """
    wanted = dict.fromkeys([PACKAGES[0], package])
    declared = [requirement for name in wanted for requirement in _declared(name)]
    own = {requirement.name for requirement in declared} | {"jaxlib"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = [line for line in lines if line[:1].isalpha() and Requirement(line.split("#")[0]).name not in own]
    if lowest:
        lower = {(r.name, s.version) for r in declared for s in r.specifier if s.operator == ">="}
        constraints += [f"{name}=={version}" for name, version in sorted(lower)]
    file = Path(session.create_tmp()) / "constraints.txt"
    file.write_text("\n".join(constraints), encoding="utf-8")
    tools = ["hypothesis", "mpmath", "pytest", "pytest-xdist"]
    tools += {"torch": ["onnx", "onnxruntime", "onnxscript", "tensorboardX"]}.get(package.rpartition("-")[2], [])
    tools += {"jax": ["flatbuffers", "optax", "orbax-checkpoint"]}.get(package.rpartition("-")[2], [])
    extras = {"core": "parquet,plot,sklearn", "torch": "lightning", "jax": "flax"}
    editable = [("-e", f"{name}[{extras[name.rpartition('-')[2]]}]") for name in wanted]
    session.install("-c", str(file), *chain.from_iterable(editable), *tools)
    names = sorted(own - {"jaxlib"})
    versions = f"from importlib.metadata import version; print(*(f'{{n}} {{version(n)}}' for n in {names}), sep=', ')"
    session.run("python", "-c", versions)


@nox.session(python="3.11")
@nox.parametrize("package", PACKAGES, ids=["core", "torch", "jax"])
def oldest(session: nox.Session, package: str) -> None:
    """Run the tests of each package with the lowest versions that it declares (old builds of torch: several GB)."""
    _alone(session, package, lowest=True)
    without = [
        "--ignore=tests/core/test_any_library.py",  # of torch
        "--ignore=tests/core/test_imports.py",  # of all packages
        # Before torch 2.13 a compiled program cannot be told from an exported one: one kernel makes all, masks too.
        "--deselect=tests/torch/test_fusion.py::test_masks_are_made_beside_the_kernel_of_a_map",
        "-Wignore::pytest.PytestRemovedIn10Warning",  # scikit-learn 1.7 gives pytest a generator
        "-Wignore:The given buffer is not writable:UserWarning",  # torch 2.9 loads exported programs
    ]
    _pytest(session, "python", *without, *_chosen(session, f"tests/{package.rpartition('-')[2]}"))


@nox.session
@nox.parametrize(
    "python,package",
    [("3.11", PACKAGES[1]), ("3.12", PACKAGES[2]), ("3.13", PACKAGES[2])],
    ids=["torch", "jax-3.12", "jax-3.13"],
)
def newest(session: nox.Session, package: str) -> None:
    """Run the tests with the newest torch and Lightning (several GB), and with the newest JAX and Flax alone."""
    _alone(session, package, lowest=False)
    _pytest(session, "python", *_chosen(session, f"tests/{package.rpartition('-')[2]}"))
    if package == PACKAGES[2]:
        for example in ("flax_nnx.py", "flax_linen.py"):
            session.run("python", f"examples/{example}")


@nox.session
def anomalib(session: nox.Session) -> None:
    """Run the post-processors in the newest anomalib 2, with untrained models on made images."""
    packages = [argument for package in PACKAGES if "jax" not in package for argument in ("-e", package)]
    # What anomalib, timm and torchvision need but torch: the newest of those would bring another one.
    needs = (
        "docstring-parser",
        "einops",
        "freia",
        "huggingface_hub",
        "imagecodecs",
        "jsonargparse[signatures]<4.47",
        "kornia",
        "lightning",
        "matplotlib",
        "omegaconf",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "opencv-python-headless",
        "openvino",
        "pandas",
        "pillow",
        "platformdirs",
        "rich",
        "rich-argparse",
        "scikit-image",
        "scikit-learn",
        "tifffile",
    )
    session.install(*CONSTRAINTS, *packages, *needs, "hypothesis", "pytest")
    session.install(*CONSTRAINTS, "--no-deps", "anomalib>=2.7,<3", "timm", "torchvision")
    session.run("python", "-c", "from importlib.metadata import version; print('anomalib', version('anomalib'))")
    session.run("python", "-m", "pytest", "tests/anomalib", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """Find defects in a brick pavement with both frameworks and both normalizations."""
    environment = {"OMP_NUM_THREADS": "1"}  # images are small: threads would wait for each other
    session.run(_development(session), "examples/bricks/demo.py", *session.posargs, env=environment)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Time everything, as ratios in one run, and write docs/evidence/benchmarks.md; ``-- --quick`` only prints."""
    session.run(_development(session), "benchmarks/bench.py", *session.posargs, env=KEPT_MEMORY)


@nox.session(venv_backend="none")
def redesign(session: nox.Session) -> None:
    """Report size, calls, compilations and times of the packages; ``-- before=FOLDER after=packages`` compares some."""
    session.run(_development(session), "benchmarks/redesign.py", *session.posargs, env=KEPT_MEMORY)


@nox.session(venv_backend="none")
def parity(session: nox.Session) -> None:
    """Run one saved normalizer in every way there is, and write docs/evidence/parity.md; ``-- --quick`` only prints."""
    session.run(_development(session), "benchmarks/parity.py", *session.posargs)


@nox.session(venv_backend="none")
def calibration(session: nox.Session) -> None:
    """Compare promised with observed false alarms on real data, and write the pages on calibration and methods."""
    environment = {"OMP_NUM_THREADS": "1"}  # it has a process for each core
    session.run(_development(session), "benchmarks/calibration.py", *session.posargs, env=environment)


@nox.session(venv_backend="none")
def coverage(session: nox.Session) -> None:
    """Measure which lines and branches of the packages the tests reach; less than 95 percent is a failure."""
    python = _development(session, "pytest-cov")
    # The verdict is that of both runs together.
    cov = ("--cov", "--cov-report=", "--cov-fail-under=0")
    _pytest(session, python, *cov, "tests/core", "tests/torch", "tests/jax", "tests/interchange")
    backends = ("--backends", "numpy,torch-eager,jax-jit")
    conformance = ("tests/conformance", "--ignore=tests/conformance/test_suite.py", *backends)
    _pytest(session, python, *cov, "--cov-append", *conformance)
    session.run(python, "-m", "coverage", "report", *session.posargs)


@nox.session(venv_backend="none")
def mutation(session: nox.Session) -> None:
    """Put mistakes into the kernels, and write docs/evidence/mutation.md: which tests notice, which survive and why."""
    session.run(_development(session), "benchmarks/mutation.py", *session.posargs)


@nox.session(venv_backend="none")
def accuracy(session: nox.Session) -> None:
    """Compare every backend with exact values, and write its page; ``-- --exhaustive``: with every float32."""
    session.run(_development(session), "benchmarks/accuracy.py", *session.posargs)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Build the documentation site: a warning, a broken link or an undocumented public name is an error."""
    python = _development(session, "furo", "myst-parser", "sphinx", "sphinx-copybutton")
    session.run(python, "-m", "pytest", "tests/docs/test_api.py", "tests/docs/test_anchors.py", external=True)
    built = ROOT / ".nox" / "docs"
    options = ("-W", "--keep-going", "--fresh-env", "--jobs", "auto", "--doctree-dir", str(built / "doctrees"))
    session.run(python, "-m", "sphinx", *options, *session.posargs, "docs", str(built / "html"), external=True)
    session.log(f"open {built / 'html' / 'index.html'}")


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheels, install them into an empty environment and try them."""
    wheels = Path(session.create_tmp()).resolve()
    for old in wheels.glob("*.whl"):
        old.unlink()
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), *PACKAGES)
    built = {wheel.name.split("-")[0]: str(wheel) for wheel in wheels.glob("*.whl")}
    with session.chdir(wheels):  # away from the sources
        session.install(*CONSTRAINTS, built["anomnorm_core"])
        session.run("python", str(ROOT / "benchmarks" / "serving.py"), str(GOLDEN))
        session.install(*CONSTRAINTS, *built.values())
        session.run("python", "-P", SMOKE, str(GOLDEN), "core", "torch", "jax")
        session.run("pip", "check")


@nox.session
def release(session: nox.Session) -> None:
    """Build what a release has into dist/, check it, and try it in empty environments; ``-- v0.1.0`` checks a tag."""
    files = ROOT / "dist"
    shutil.rmtree(files, ignore_errors=True)
    session.install(*CONSTRAINTS, "build", "towncrier", "twine")
    for package in PACKAGES:  # the wheel is built from the source distribution
        session.run("python", "-m", "build", "--outdir", str(files), package)
    session.run("twine", "check", "--strict", *map(str, sorted(files.iterdir())))
    session.run("towncrier", "build", "--draft", "--version", "next")
    session.run("python", "tools/release.py", str(files), *session.posargs)
    for names in (("core",), ("core", "torch"), ("core", "jax")):
        environment = Path(session.create_tmp()).resolve() / names[-1]
        session.run(sys.executable, "-m", "virtualenv", "--quiet", "--clear", str(environment), external=True)
        python = str(environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))
        wheels = [str(wheel) for name in names for wheel in files.glob(f"anomnorm_{name}-*.whl")]
        session.run(python, "-m", "pip", "install", "--quiet", *CONSTRAINTS, *wheels, external=True)
        with session.chdir(environment):  # away from the sources
            session.run(python, "-P", SMOKE, str(GOLDEN), *names, external=True)
            session.run(python, "-m", "pip", "check", external=True)
