"""One file, every way to run it: how far each is from the reference, as a table for docs/evidence/parity.md.

A normalizer is fitted with PyTorch, saved, and loaded by each package; PyTorch and JAX also export it. All score the
same float32 numbers; the reference is NumPy in float64.
"""

import argparse
import io
import platform
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
import jax.export
import numpy as np
import onnxruntime
import torch

import anomnorm_core
import anomnorm_jax
import anomnorm_torch

PAGE = Path(__file__).parent.parent / "docs" / "evidence" / "parity.md"
THRESHOLD = 2.0  # in sigmas under the CDF; raw under the others
METHODS = {"min-max": "margin", "two-slope": "margin", "cdf": "z"}  # and an extra of each
Results = dict[str, np.ndarray]
Run = Callable[[np.ndarray, float], Results]


def fitted(method: str, folder: Path) -> Path:
    """Fit with PyTorch and save."""
    scores = torch.randn(4096, generator=torch.Generator().manual_seed(1)).mul(0.25).exp()
    kernels = anomnorm_torch.methods.METHODS[method]
    record = kernels.update(kernels.init(), scores)
    anomnorm_torch.Normalizer.of(method, record, threshold=THRESHOLD).save(folder / method)
    return folder / method


def ways(path: Path, extra: str) -> dict[str, Run]:
    """How a saved normalizer can be run, each as a function of scores and a raw threshold."""
    core = anomnorm_core.Normalizer.load(path)
    eager = anomnorm_torch.Normalizer.load(path)
    jitted = anomnorm_jax.Normalizer.load(path)
    names = ["pred_scores", "pred_labels", f"pred_scores_{extra}"]

    def numpy_(x: np.ndarray, t: float) -> Results:
        return core(x, threshold=t, extras=[extra])

    def torch_(x: np.ndarray, t: float) -> Results:
        result = eager(torch.from_numpy(x), threshold=torch.tensor(t), extras=[extra])
        return {name: value.numpy() for name, value in result.items()}

    def jax_(x: np.ndarray, t: float) -> Results:
        return {name: np.asarray(value) for name, value in jitted(x, threshold=t, extras=[extra]).items()}

    batch = torch.export.Dim("batch")
    program = torch.export.export(
        eager,
        (torch.ones(2),),
        {"threshold": torch.tensor(1.0), "extras": (extra,)},
        dynamic_shapes={"pred_scores": {0: batch}, "threshold": {}, "extras": (None,)},
    )

    def torch_export(x: np.ndarray, t: float) -> Results:
        result = program.module()(torch.from_numpy(x), threshold=torch.tensor(t), extras=(extra,))
        return {name: value.numpy() for name, value in result.items()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    model = io.BytesIO()
    onnx.save(model)
    session = onnxruntime.InferenceSession(model.getvalue())

    def onnx_(x: np.ndarray, t: float) -> Results:
        feed = {"pred_scores": x, "threshold": np.asarray(t, dtype=np.float32)}
        return dict(zip(names, session.run(None, feed), strict=True))

    (size,) = jax.export.symbolic_shape("batch")
    arguments = jax.ShapeDtypeStruct((size,), np.float32), jax.ShapeDtypeStruct((), np.float32)
    call = jax.jit(lambda x, t: jitted(x, threshold=t, extras=[extra]))
    stablehlo = jax.export.deserialize(jax.export.export(call)(*arguments).serialize())

    def jax_export(x: np.ndarray, t: float) -> Results:
        return {name: np.asarray(value) for name, value in stablehlo.call(x, np.float32(t)).items()}

    return {
        "NumPy": numpy_,
        "PyTorch": torch_,
        "PyTorch, `torch.export`": torch_export,
        "PyTorch, ONNX in onnxruntime": onnx_,
        "JAX": jax_,
        "JAX, `jax.export` (StableHLO)": jax_export,
    }


def reference(path: Path, x: np.ndarray, extra: str) -> Results:
    """NumPy in float64, with the parameters and the threshold that float32 scores have: rounded to float32."""
    fit = anomnorm_core.Normalizer.load(path).to_fit()
    rounded = [np.float64(np.float32(value)) for value in fit.level("image").parameters]
    t = float(np.float32(fit.threshold("image").raw))
    exact = anomnorm_core.Normalizer.of(fit.method.name, rounded, threshold=t, units="raw")
    return exact(x.astype(np.float64), extras=[extra])


def table(points: int) -> str:
    """Rows of ways, columns of deviations."""
    cells: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method, extra in METHODS.items():
            path = fitted(method, Path(folder))
            raw = float(np.float32(anomnorm_core.Normalizer.load(path).thresholds["image"].raw))
            # z from 12 below the threshold to 40 above it
            z = np.linspace(THRESHOLD - 12, THRESHOLD + 40, points)
            x = np.exp(0.25 * z) if method == "cdf" else np.linspace(-1, 5, points)
            neighbours = raw + np.arange(-32, 32) * np.spacing(np.float32(raw))
            x = np.concatenate([x, neighbours]).astype(np.float32)
            exact = reference(path, x, extra)
            u = exact["pred_scores"]
            for name, run in ways(path, extra).items():
                found = run(x, raw)
                assert np.array_equal(found["pred_scores"] >= 0.5, found["pred_labels"])
                differ = int(np.sum(found["pred_labels"] != exact["pred_labels"]))
                error = np.abs(found["pred_scores"] - u).max() * 2**24
                row = cells.setdefault(name, [])
                row += [str(differ), f"{error:.2f}"]
                if method == "cdf":
                    tail = (u > 0) & (u < 1e-6)
                    worst = np.max(np.abs(found["pred_scores"][tail] / u[tail] - 1))
                    row.append("all of it" if worst > 0.5 else f"{worst:.1e}")
                    z = exact[f"pred_scores_{extra}"]
                    off = np.abs(found[f"pred_scores_{extra}"] - z)
                    bound = 4 * np.spacing(np.abs(z).astype(np.float32)) + 2.0**-30 / 0.25
                    row.append(f"{np.max(off / bound):.2f}")
    head = [
        "run by",
        "min-max: labels that differ",
        "`u`, largest error / 2^-24",
        "two-slope: labels that differ",
        "`u`, largest error / 2^-24",
        "CDF: labels that differ",
        "`u`, largest error / 2^-24",
        "`u` below 1e-6, largest relative error",
        "`z`, largest error / its bound",
    ]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    lines += [" | ".join([name, *row]) for name, row in cells.items()]
    return "\n".join(f"| {line} |" for line in lines)


def page(points: int) -> str:
    packages = ("numpy", "torch", "jax", "onnxruntime")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"""# Parity

One file, fitted and saved with PyTorch, run in every way there is on {points:,} float32 scores and the 64 neighbours
of the threshold, against NumPy in float64 (clauses P2, P4): from 12 sigmas below the threshold to 40 above it (CDF),
and over three times the range (the others). Written by `nox -s parity`, with anomnorm {version("anomnorm-core")}, on
{platform.machine()} with {versions}.

{table(points)}

- Decisions are made on raw scores: no label differs. In each way, `u >= 0.5` exactly where flagged (clause N4).
- `u` may be off by 2 x 2^-24, and `z` by 4 ulp and 2^-30 / std (clause N13).
- Programs that PyTorch exports have a normal distribution of their own, because ONNX has no `Erfc`: far below the
  threshold its relative error is that of the exponential.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few points, and print instead of writing the page")
    arguments = parser.parse_args()
    if arguments.quick:
        print(page(2_000))
    else:
        PAGE.write_text(page(500_000), encoding="utf-8")
        print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
