"""Sessions for development and continuous integration: ``nox -l`` lists them, plain ``nox`` runs the usual ones."""

import hashlib
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
# uv would not find the CPU build of torch that the constraints file asks for.
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "typing", "tests", "conformance", "build"]

ROOT = Path(__file__).parent
PACKAGES = [f"packages/anomnorm-{name}" for name in ("core", "torch", "jax")]
SOURCES = [f"{package}/src" for package in PACKAGES]
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))
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


@nox.session(python=["3.12", "3.13"])
def newest(session: nox.Session) -> None:
    """Run the JAX package's tests and examples with the newest JAX and Flax, on later Pythons and without torch."""
    packages = [argument for package in PACKAGES if "torch" not in package for argument in ("-e", package)]
    tools = (
        "flatbuffers",
        "flax",
        "hypothesis",
        "mpmath",
        "optax",
        "orbax-checkpoint",
        "pytest",
        "pytest-xdist",
        "scikit-learn",
    )
    session.install(*CONSTRAINTS, *packages, *tools)
    session.run("python", "-c", "import flax, jax; print('jax', jax.__version__, 'flax', flax.__version__)")
    session.run("python", "-m", "pytest", "-n", "auto", "tests/jax", *session.posargs)
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
    """Build the wheels, install them into an empty environment and import them."""
    wheels = Path(session.create_tmp()).resolve()
    for old in wheels.glob("*.whl"):
        old.unlink()
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), *PACKAGES)
    built = {wheel.name.split("-")[0]: str(wheel) for wheel in wheels.glob("*.whl")}
    with session.chdir(wheels):  # away from the sources
        session.install(*CONSTRAINTS, built["anomnorm_core"])
        golden = ROOT / "tests" / "core" / "golden" / "cdf_v1.safetensors"
        session.run("python", str(ROOT / "benchmarks" / "serving.py"), str(golden))
        session.install(*CONSTRAINTS, *built.values())
        for name in ("anomnorm_torch", "anomnorm_jax"):
            everything = f"import {name} as m; [getattr(m, n) for n in m.__all__]; print(m.__name__, m.__version__)"
            session.run("python", "-c", everything)
        session.run("pip", "check")
