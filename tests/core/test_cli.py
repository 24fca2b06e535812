"""The command line: what it reads, what it writes, and what it says."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr

from anomnorm_core import Normalizer, cdf, min_max
from anomnorm_core.cli import arrays, main, parquet, text
from anomnorm_core.file import replacing

GENERATOR = np.random.default_rng(0)
N, M = 299, 21
SCORES = np.exp(0.4 * GENERATOR.normal(size=N + M)) * np.repeat([1.0, 4.0], [N, M])
LABELS = np.repeat([0, 1], [N, M])
ORDER = GENERATOR.permutation(N + M)
SCORES, LABELS = SCORES[ORDER], LABELS[ORDER]
NAMES = [f"part {i}.png" for i in range(N + M)]
READERS = ["numpy", pytest.param("pyarrow", marks=pytest.mark.skipif(not find_spec("pyarrow"), reason="no pyarrow"))]
KINDS = ["csv", "npz", *(["parquet"] if find_spec("pyarrow") else [])]
RATE = ["--label", "label", "--threshold", "false_alarm_rate", "--rate", "0.01"]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(text, "LARGE", 0 if request.param == "pyarrow" else 2**60)
    return str(request.param)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def function(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return function


def write(kind: str = "csv", labels: np.ndarray = LABELS) -> Path:
    path = Path(f"scores.{kind}")
    if kind == "csv":
        write_text(path, ["path", "score", "label"], zip(NAMES, SCORES.tolist(), labels.tolist(), strict=True))
    elif kind == "npz":
        np.savez_compressed(path, path=np.array(NAMES), score=SCORES, label=labels, maps=np.ones((2, 3, 4)))
    else:
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(
            pa.table({"path": NAMES, "score": SCORES, "label": labels}), path
        )
    return path


def write_text(path: Path, header: list[str], rows: object, **options: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator=options.pop("lineterminator", "\n"), **options)  # type: ignore[arg-type]
        writer.writerows([header, *rows] if header else rows)  # type: ignore[misc, has-type]


def read(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def conformal(scores: np.ndarray, labels: np.ndarray, rate: float) -> float:
    """The float64 above the ``ceil((n + 1)(1 - rate))``-th smallest normal score (clause T7)."""
    normal = np.sort(scores[labels == 0])
    return float(np.nextafter(normal[int(np.ceil((normal.size + 1) * (1 - rate) - 1e-9)) - 1], np.inf))


@pytest.mark.clause("T7")
@pytest.mark.parametrize("kind", KINDS)
def test_from_scores_to_labels(kind: str, run: Callable[..., tuple[int, str, str]]) -> None:
    path = write(kind)
    assert run("fit", path, *RATE, "-o", "fit.safetensors")[::2] == (0, "")
    fit = Normalizer.load("fit.safetensors").to_fit()
    log = np.log(SCORES[LABELS == 0])
    np.testing.assert_allclose(fit.level("image").parameters, (log.mean(), log.std(ddof=1)), rtol=1e-12)
    t = conformal(SCORES, LABELS, 0.01)
    assert float(fit.threshold("image").raw) == t
    assert fit.threshold("image").guaranteed

    out = f"out.{kind}"
    code, said, _ = run("apply", "fit.safetensors", path, "--extras", "z", "-o", out)
    assert (code, said) == (0, f"{out}: {np.sum(t <= SCORES)} of {N + M} rows are flagged\n")
    table: dict[str, np.ndarray]
    if kind == "csv":
        rows = read(out)
        table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    elif kind == "npz":
        table = dict(np.load(out))
        assert table.pop("maps").shape == (2, 3, 4)
    else:
        found = pytest.importorskip("pyarrow.parquet").read_table(out)
        table = {name: found.column(name).to_numpy() for name in found.column_names}
    assert list(table) == ["path", "score", "label", "normalized_score", "pred_label", "z"]
    assert table["path"].tolist() == NAMES
    assert np.array_equal(table["score"].astype(float), SCORES)
    assert np.array_equal(table["pred_label"].astype(int), t <= SCORES)
    expected = ndtr(np.log(SCORES / t) / log.std(ddof=1))
    np.testing.assert_allclose(table["normalized_score"].astype(float), expected, atol=1e-12)
    np.testing.assert_allclose(table["z"].astype(float), (np.log(SCORES) - log.mean()) / log.std(ddof=1), atol=1e-12)


@pytest.mark.parametrize("delimiter", [";", None])
def test_decimal_commas(delimiter: str | None, reader: str, run: Callable[..., tuple[int, str, str]]) -> None:
    """Also of one column, in which the comma separates nothing; what is added has them too."""
    given = [repr(score).replace(".", ",") for score in SCORES.tolist()]
    rows = list(zip(given, LABELS.tolist(), strict=True)) if delimiter else [[text] for text in given]
    write_text(Path("comma.csv"), ["score", "label"][: len(rows[0])], rows, delimiter=delimiter or ";")
    write()
    labelled = ["--label", "label"] if delimiter else []
    for path, more in (("comma.csv", ["--decimal", ","]), ("scores.csv", [])):
        end = ("--threshold", "2.5", *labelled, *more, "-o", f"{path}.safetensors")
        assert run("fit", path, *end)[0] == 0
    assert Path("comma.csv.safetensors").read_bytes() == Path("scores.csv.safetensors").read_bytes()
    assert run("apply", "comma.csv.safetensors", "comma.csv", "--decimal", ",", "-o", "out.csv")[0] == 0
    assert run("apply", "comma.csv.safetensors", "scores.csv", "-o", "plain.csv")[0] == 0
    with Path("out.csv").open(encoding="utf-8", newline="") as file:
        found = [row["normalized_score"] for row in csv.DictReader(file, delimiter=";")]
    assert [text.replace(",", ".") for text in found] == [row["normalized_score"] for row in read("plain.csv")]
    assert "," in found[0]


@pytest.mark.clause("S9")
def test_the_shape_of_scores_is_checked_whatever_the_threshold(run: Callable[..., tuple[int, str, str]]) -> None:
    gumbel = np.exp(np.random.default_rng(4).gumbel(size=400))  # skewed, also as a logarithm
    write_text(Path("gumbel.csv"), ["score"], [[score] for score in gumbel.tolist()])
    for threshold in (["3"], ["false_alarm_rate"], ["normal_quantile"]):
        said = run("fit", "gumbel.csv", "--threshold", *threshold, "--force", "-o", "a.safetensors")
        assert said[0] == 0
        assert "skew" in said[2]


def test_same_file_as_the_api(run: Callable[..., tuple[int, str, str]]) -> None:
    write()
    assert run("fit", "scores.csv", "--label", "label", "--threshold", "2.5", "-o", "a.safetensors")[0] == 0
    in_order = np.sort(SCORES[LABELS == 0])  # so that files do not depend on the order of rows
    Normalizer.cdf(cdf.update(cdf.init(), in_order), threshold=2.5).save("b.safetensors")
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    np.save("scores.npy", SCORES.astype(np.float32))
    options = ["--method", "min-max", "--threshold", "1.5", "--units", "raw"]
    assert run("fit", "scores.npy", *options, "-o", "c.safetensors", "--bounded-memory")[0] == 0
    Normalizer.min_max(min_max.update(min_max.init(), SCORES.astype(np.float32)), threshold=1.5).save("d.safetensors")
    assert Path("c.safetensors").read_bytes() == Path("d.safetensors").read_bytes()


@pytest.mark.clause("T2", "T3", "T5")
def test_rules_of_thresholds(run: Callable[..., tuple[int, str, str]]) -> None:
    write()

    def threshold(*options: object) -> float:
        assert run("fit", "scores.csv", "--label", "label", *options, "--force", "-o", "x.safetensors")[0] == 0
        return float(Normalizer.load("x.safetensors").thresholds["image"].raw)

    candidates = np.sort(SCORES[LABELS == 1])
    f1 = [2 * np.sum(LABELS[t <= SCORES]) / (M + np.sum(t <= SCORES)) for t in candidates]
    best = candidates[len(f1) - 1 - int(np.argmax(f1[::-1]))]
    assert threshold() == best
    assert threshold("--method", "min-max") == best
    quantile = np.nextafter(np.sort(SCORES[LABELS == 0])[N - 1 - 14], np.inf)  # 5% of 299 are 14 whole ones
    assert threshold("--threshold", "normal_quantile", "--quantile", "0.95") == quantile
    # In a histogram: one edge of a bin, of 0.4% at most, from the exact ones, and never more false alarms.
    assert best * (1 - 0.004) <= threshold("--bounded-memory") <= best
    for exact, options in (
        (quantile, ["--threshold", "normal_quantile", "--quantile", "0.95"]),
        (conformal(SCORES, LABELS, 0.01), RATE[2:]),
    ):
        assert exact <= threshold("--bounded-memory", *options) <= exact * 1.004


@pytest.mark.clause("S1")
@pytest.mark.parametrize("bounded", [[], ["--bounded-memory"]])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_one_table(
    kind: str, bounded: list[str], run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(kind)
    for name in ("one", "many"):
        assert run("fit", path, *RATE, *bounded, "-o", f"{name}.safetensors")[0] == 0
        assert run("apply", "one.safetensors", path, "-o", f"{name}.{kind}")[0] == 0
        monkeypatch.setattr(text, "BLOCK", 50)
        monkeypatch.setattr(arrays, "ROWS", 7)
        monkeypatch.setattr(parquet, "ROWS", 7)
    one, many = (Normalizer.load(f"{name}.safetensors").to_fit().level("image") for name in ("one", "many"))
    np.testing.assert_allclose(one.parameters, many.parameters, rtol=1e-12)
    assert one.threshold is not None
    assert many.threshold is not None
    assert one.threshold.raw == many.threshold.raw
    if kind == "csv":
        assert Path("one.csv").read_bytes() == Path("many.csv").read_bytes()


def test_several_files_are_one_sample_and_several_results(run: Callable[..., tuple[int, str, str]]) -> None:
    write()
    lines = Path("scores.csv").read_text().splitlines(keepends=True)
    for name, part in (("a", lines[1:100]), ("b", lines[100:])):
        Path(f"{name}.csv").write_text("".join([lines[0], *part]))
    assert run("fit", "a.csv", "b.csv", *RATE, "-o", "two.safetensors")[0] == 0
    assert run("fit", "scores.csv", *RATE, "-o", "one.safetensors")[0] == 0
    one, two = (Normalizer.load(f"{name}.safetensors").thresholds["image"].raw for name in ("one", "two"))
    assert one == two
    assert run("apply", "one.safetensors", "a.csv", "b.csv", "-o", "folder")[0] == 0
    assert run("apply", "one.safetensors", "scores.csv", "-o", "one.csv")[0] == 0
    assert read("folder/a.csv") + read("folder/b.csv") == read("one.csv")


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " "])
def test_text_of_any_kind(delimiter: str, newline: str, run: Callable[..., tuple[int, str, str]]) -> None:
    rows = list(zip([f"a{i}" for i in range(N + M)], SCORES.tolist(), LABELS.tolist(), strict=True))
    write_text(Path("x.csv"), ["path", "score", "label"], rows, delimiter=delimiter, lineterminator=newline)
    write_text(Path("y.txt"), [], rows, delimiter=delimiter, lineterminator=newline)
    assert run("fit", "x.csv", *RATE, "-o", "x.safetensors")[0] == 0
    assert run("fit", "y.txt", "--score", "2", "--label", "3", *RATE[2:], "-o", "y.safetensors")[0] == 0
    assert Path("x.safetensors").read_bytes() == Path("y.safetensors").read_bytes()
    for name in ("x.csv", "y.txt"):
        number = ["--score", "2"] if name == "y.txt" else []
        assert run("apply", "x.safetensors", name, *number, "-o", f"out{name}")[0] == 0
        before, after = (Path(each).read_bytes().splitlines(keepends=True) for each in (name, f"out{name}"))
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            assert new.startswith(old.rstrip(b"\r\n"))
            assert new.endswith(newline.encode())
            assert new.count(delimiter.encode()) == 4


@pytest.mark.usefixtures("reader")
def test_unusual_text(run: Callable[..., tuple[int, str, str]]) -> None:
    # A mark of the encoding, quotes, a delimiter in quotes, an empty line, empty fields, spaces, no last line break.
    content = '\ufeffpath,score,label\n"a,b",1.5,OK\n\nü,"2.5",good\nc,,Defect\n'
    content += 'd, 4.5 ,anomalous\n"e",inf,"1.0"\ng,2,no\nh,2,no\nf,3,'
    Path("x.csv").write_text(content, encoding="utf-8")
    options = ["--label", "label", "--method", "min-max", "--threshold", "3"]
    code, _, said = run("fit", "x.csv", *options, "-o", "x.safetensors")
    assert code == 0
    assert "1 of 8 rows have no label" in said
    assert "1 is NaN and 1 infinite" in said
    fit = Normalizer.load("x.safetensors").to_fit()
    assert tuple(map(float, fit.level("image").parameters)) == (1.5, 4.5)
    code, _, said = run("apply", "x.safetensors", "x.csv", "-o", "y.csv")
    assert code == 0
    assert "1 image scores of this run are NaN" in said
    rows = list(csv.reader(Path("y.csv").read_text("utf-8").splitlines()))
    assert rows[0] == ["\ufeffpath", "score", "label", "normalized_score", "pred_label"]
    assert [row[0] for row in rows[1:]] == ["a,b", "ü", "c", "d", "e", "g", "h", "f"]
    assert [row[4] for row in rows[1:]] == ["0", "0", "0", "1", "1", "0", "0", "1"]
    assert rows[-1][3] == "0.5"


FAULTS = [
    ("abc", "scores.csv, line 17, column 'score': 'abc' is no number."),
    ("0,5", "scores.csv, line 17: it has 4 columns, and the first line 3."),
    ('"0,5"', "scores.csv, line 17, column 'score': '0,5' is no number. If that is a decimal comma, give --decimal ,."),
    ("1_0", "scores.csv, line 17, column 'score': '1_0' is no number."),
    ('"1', "scores.csv, line 17: a quotation mark opens here that is not closed in this line."),
    ("1.0,scratch\n#", "scores.csv, line 18: it has 2 columns, and the first line 3."),
]


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("fault", "message"), FAULTS)
@pytest.mark.parametrize("block", [2**18, 100])
def test_faults_have_a_line_and_a_column(
    block: int, fault: str, message: str, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK", block)
    lines = ["path,score,label", *(f"{i},{score!r},normal" for i, score in enumerate(SCORES.tolist()))]
    lines[16] = f"15,{fault},normal"
    Path("scores.csv").write_text("\n".join(lines))
    code, out, said = run("fit", "scores.csv", *RATE, "-o", "x.safetensors")
    assert (code, out, said) == (1, "", f"anomnorm: error: {message}\n")
    assert not Path("x.safetensors").exists()


@pytest.mark.usefixtures("reader")
def test_empty_lines_count(run: Callable[..., tuple[int, str, str]]) -> None:
    Path("x.csv").write_text("score\n1\n\n2\n\n3\n\n")
    options = ["--threshold", "normal_quantile", "-o", "x.safetensors"]
    assert run("fit", "x.csv", *options)[0] == 0
    assert Normalizer.load("x.safetensors").to_fit().level("image").valid == 3
    Path("x.csv").write_text("score\n1\n\n2\n\nx\n")
    said = run("fit", "x.csv", *options, "--force")[2]
    assert said == "anomnorm: error: x.csv, line 6, column 'score': 'x' is no number.\n"


def test_labels_of_arrays_have_an_index(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "ROWS", 7)
    labels = np.where(np.arange(N + M) == 100, 7, LABELS)
    np.savez("x.npz", score=SCORES, label=labels)
    np.save("x.npy", np.stack([SCORES, labels], axis=1))
    for name, columns in (("x.npz", ["--label", "label"]), ("x.npy", ["--score", "1", "--label", "2"])):
        code, _, said = run("fit", name, *columns, *RATE[2:], "-o", "x.safetensors")
        assert code == 1
        assert said.startswith(f"anomnorm: error: {name}, index 100, column {columns[-1]!r}: '7")


@pytest.mark.clause("N6")
def test_scores_without_a_logarithm_are_never_flagged(run: Callable[..., tuple[int, str, str]]) -> None:
    scores = [3, 3.1, 3.2, 3.3, -5, *[-1] * 7, 5]
    np.savez("x.npz", score=np.array(scores), label=np.repeat([0, 1], [5, 8]))
    for bounded in ([], ["--bounded-memory"]):
        assert run("fit", "x.npz", "--label", "label", *bounded, "--force", "-o", "x.safetensors")[0] == 0
        assert 5 * (1 - 0.004) <= Normalizer.load("x.safetensors").thresholds["image"].raw <= 5


@pytest.mark.usefixtures("reader")
def test_labels(run: Callable[..., tuple[int, str, str]]) -> None:
    words = np.where(LABELS == 1, np.where(np.arange(N + M) % 2, "scratch", "hole"), "good")
    write("csv", words)
    code, _, said = run("fit", "scores.csv", *RATE, "-o", "x.safetensors")
    line = 2 + int(np.argmax(LABELS))
    assert code == 1
    assert f"scores.csv, line {line}, column 'label': {str(words[line - 2])!r} is no known label" in said
    files = []
    for name, options in (("a", ["--normal", "Good"]), ("b", ["--anomalous", "hole", "--anomalous", "scratch"])):
        assert run("fit", "scores.csv", *RATE, *options, "-o", f"{name}.safetensors")[0] == 0
        files.append(Path(f"{name}.safetensors").read_bytes())
    write("csv")
    assert run("fit", "scores.csv", *RATE, "-o", "c.safetensors")[0] == 0
    files.append(Path("c.safetensors").read_bytes())
    write("csv", 1 - 2 * LABELS)  # scikit-learn's
    assert "scikit-learn" in run("fit", "scores.csv", *RATE, "-o", "d.safetensors")[2]
    assert run("fit", "scores.csv", *RATE, "--anomalous", "-1", "-o", "d.safetensors")[0] == 0
    files.append(Path("d.safetensors").read_bytes())
    assert len(set(files)) == 1
    # Longer than what is compared at once, and many of them.
    long = "x" * 40
    write("csv", np.array([f"{long}{i}" if label else long for i, label in enumerate(LABELS.tolist())]))
    assert run("fit", "scores.csv", *RATE, "--normal", long, "-o", "e.safetensors")[0] == 0
    assert Path("e.safetensors").read_bytes() == files[0]


def test_arrays(run: Callable[..., tuple[int, str, str]]) -> None:
    table = np.zeros(N + M, dtype=[("score", "<f4"), ("label", "?")])
    table["score"], table["label"] = SCORES, LABELS == 1
    np.save("table.npy", table)
    np.save("columns.npy", np.stack([SCORES.astype(np.float32), LABELS.astype(np.float32)], axis=1))
    np.savez("archive.npz", score=SCORES.astype(np.float32)[:, None], label=LABELS)
    write()
    files = set()
    for name, columns in (
        ("table.npy", ["--label", "label"]),
        ("columns.npy", ["--score", "1", "--label", "2"]),
        ("archive.npz", ["--label", "label"]),
        ("scores.csv", ["--label", "label", "--dtype", "float32"]),
    ):
        assert run("fit", name, *columns, *RATE[2:], "--force", "-o", "x.safetensors")[0] == 0
        files.add(Path("x.safetensors").read_bytes())
    assert len(files) == 1
    threshold = Normalizer.load("x.safetensors").thresholds["image"].raw
    assert np.float32(threshold) == threshold  # just above a score in the precision of the scores
    assert run("apply", "x.safetensors", "table.npy", "-o", "out.npz")[0] == 0
    assert run("apply", "x.safetensors", "table.npy", "-o", "out.npy")[0] == 0
    found = np.load("out.npz")
    assert found["normalized_score"].dtype == np.float32
    assert np.array_equal(np.load("out.npy"), found["normalized_score"])
    assert np.array_equal(found["pred_label"], SCORES.astype(np.float32) >= threshold)
    assert np.array_equal(found["normalized_score"] >= 0.5, found["pred_label"])


@pytest.mark.skipif(not find_spec("pyarrow"), reason="no pyarrow")
def test_parquet_with_missing_values(run: Callable[..., tuple[int, str, str]]) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    labels = pa.array(["good", "bad", None, "good", "good", "bad"]).dictionary_encode()
    pq.write_table(pa.table({"score": pa.array([1, 4, 9, None, 2, 5]), "label": labels}), "x.parquet")
    options = ["--label", "label", "--method", "min-max", "--threshold", "3"]
    code, _, said = run("fit", "x.parquet", *options, "-o", "x.safetensors")
    assert code == 0
    assert "1 of 6 rows have no label" in said
    parameters = Normalizer.load("x.safetensors").to_fit().level("image").parameters
    assert tuple(map(float, parameters)) == (1, 5)
    assert run("apply", "x.safetensors", "x.parquet", "-o", "y.parquet")[0] == 0
    table = pq.read_table("y.parquet")
    assert table.column("label").to_pylist() == labels.to_pylist()
    assert table.column("pred_label").to_pylist() == [0, 1, 1, 0, 0, 1]
    assert table.column("normalized_score").to_pylist()[:2] == [0, 0.75]
    pq.write_table(pa.table({"score": [1.0, 2.0], "label": ["good", "odd"]}), "x.parquet")
    said = run("fit", "x.parquet", *options, "-o", "y.safetensors")[2]
    assert said.startswith("anomnorm: error: x.parquet, row 1, column 'label': 'odd' is no known label")


@pytest.mark.skipif(not find_spec("pyarrow"), reason="no pyarrow")
def test_parquet_that_is_damaged_or_ambiguous(run: Callable[..., tuple[int, str, str]]) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"score": SCORES}), "x.parquet")
    content = bytearray(Path("x.parquet").read_bytes())
    content[4:40] = bytes(36)  # the head of the first page; what is read first is at the end
    Path("x.parquet").write_bytes(content)
    options = ["--threshold", "false_alarm_rate", "-o", "x.safetensors"]
    code, _, said = run("fit", "x.parquet", *options)
    assert code == 1
    assert said.startswith("anomnorm: error: x.parquet: it is damaged: ")
    pq.write_table(pa.table([pa.array(SCORES), pa.array(SCORES)], names=["score", "score"]), "x.parquet")
    code, _, said = run("fit", "x.parquet", "--score", "2", *options)
    assert (code, said) == (1, "anomnorm: error: x.parquet: several columns are named 'score'; rename them.\n")


def test_lines_that_are_too_short_and_too_long_are_no_table(
    reader: str,
    run: Callable[..., tuple[int, str, str]],
) -> None:
    # As many delimiters as in a table, in other lines.
    Path("x.csv").write_text("score,path,label\n1,2,3,0\n4,0\n" + "5,a,0\n" * 50)
    code, _, said = run("fit", "x.csv", *RATE, "-o", "x.safetensors")
    assert (code, said) == (1, "anomnorm: error: x.csv, line 2: it has 4 columns, and the first line 3.\n")
    code, _, said = run("fit", "x.csv", "--method", "min-max", "--threshold", "3", "-o", "x.safetensors")
    assert code == 1
    assert "x.csv, line 2: it has 4 columns, and the first line 3." in said


@pytest.mark.parametrize(("offset", "bits", "what"), [(8, 1, "encrypted"), (10, 99, "compression")])
def test_archives_that_cannot_be_opened(
    offset: int, bits: int, what: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    write("npz")
    content = bytearray(Path("scores.npz").read_bytes())
    entry = content.find(b"PK\x01\x02")
    while entry >= 0:
        content[entry + offset] |= bits
        entry = content.find(b"PK\x01\x02", entry + 4)
    Path("scores.npz").write_bytes(content)
    code, _, said = run("fit", "scores.npz", *RATE, "-o", "x.safetensors")
    assert code == 1
    assert said.startswith("anomnorm: error: scores.npz: this is no archive of arrays in NumPy's format (")
    assert what in said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_a_pipe_is_refused_before_it_is_read(run: Callable[..., tuple[int, str, str]]) -> None:
    os.mkfifo("x.csv")  # opening it would wait for somebody who writes
    code, _, said = run("fit", "x.csv", *RATE, "-o", "x.safetensors")
    assert code == 1
    assert said.startswith("anomnorm: error: x.csv: this is no regular file")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "x.csv: the file is empty."),
        ("x.csv", b"score\n", "there are no rows to fit."),
        ("x.csv", b"a,b\n1,2\n", "x.csv: say with --score which column holds the scores; there are 'a', 'b'."),
        ("x.csv", b"score\n1\n\xe9\n", "x.csv, line 3: this is no text in UTF-8. Save it in that encoding."),
        ("x.csv", b"score,score\n1,2\n", "x.csv: 2 columns are named 'score'; give its number."),
        ("x.npy", b"PK", "x.npy: this is no array of numbers in NumPy's format"),
        ("x.npz", b"PK", "x.npz: this is no archive of arrays in NumPy's format"),
        ("x.npy", np.ones((2, 3, 4)), "x.npy: it holds an array of shape (2, 3, 4) and type float64"),
        ("x.npy", np.array([None]), "x.npy: it holds an array of shape (1,) and type object"),
        ("x.npy", np.array(["a"]), "x.npy, column '1': its values are of type <U1; scores are real numbers."),
        ("x.json", b"[]", "x.json: scores are read from files that end in .csv, .tsv, .txt, .npy, .npz"),
        ("x.csv", None, "x.csv: No such file or directory"),
        ("x.npz", {"score": SCORES, "label": LABELS[1:]}, "x.npz: its columns are of different lengths: "),
    ],
)
def test_unreadable_files(name: str, content: object, message: str, run: Callable[..., tuple[int, str, str]]) -> None:
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    elif isinstance(content, dict):
        np.savez(name, **content)
    elif content is not None:
        np.save(name, content)
    label = ["--label", "label"] if isinstance(content, dict) else []
    code, out, said = run("fit", name, *label, "--threshold", "false_alarm_rate", "-o", "x.safetensors")
    assert (code, out) == (1, "")
    assert said.startswith(f"anomnorm: error: {message}")
    assert said.count("\n") == 1


@pytest.mark.parametrize("cut", [1, 1000])
def test_arrays_that_are_cut_off(cut: int, run: Callable[..., tuple[int, str, str]]) -> None:
    np.save("x.npy", SCORES)
    Path("x.npy").write_bytes(Path("x.npy").read_bytes()[:-cut])
    code, _, said = run("fit", "x.npy", "--threshold", "3", "-o", "x.safetensors")
    assert (code, said) == (1, "anomnorm: error: x.npy: the file is cut off.\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--threshold adaptive needs labelled rows"),
        (["--threshold", "best"], "--threshold best: give one of adaptive, "),
        (["--threshold", "3", "--rate", "0.1"], "--rate is of --threshold false_alarm_rate"),
        (["--threshold", "false_alarm_rate", "--rate", "5"], "0.05 for 5%"),
        (["--threshold", "false_alarm_rate", "--units", "raw"], "--units is of a NUMBER"),
        (["--threshold", "false_alarm_rate", "--confidence", "0.9", "--bounded-memory"], "--confidence needs"),
        (["--threshold", "3", "--method", "min-max", "--transform", "log"], "--transform is of method cdf"),
        (["--threshold", "3", "--method", "minmax"], "Did you mean 'min-max'?"),
        (["--threshold", "3", "--method", "min-max", "--units", "sigmas"], "min-max has none"),
        (["--threshold", "nan"], "is not finite"),
        (["--threshold", "3", "--delimiter", "ab"], "'ab' is not one character"),
        (["--thres", "3"], "unrecognized arguments"),
    ],
)
def test_wrong_usage(options: list[str], message: str, run: Callable[..., tuple[int, str, str]]) -> None:
    write()
    code, out, said = run("fit", "scores.csv", *options, "-o", "x.safetensors")
    assert (code, out) == (2, "")
    assert message in said


def test_warnings_are_lines(run: Callable[..., tuple[int, str, str]]) -> None:
    write()
    code, _, said = run("fit", "scores.csv", *RATE[2:5], "0.0001", "-o", "x.safetensors")
    assert code == 0
    assert "anomnorm: warning: scores.csv has a column 'label' that is not used" in said
    assert "anomnorm: warning: 320 normal validation samples cannot guarantee a false-alarm rate of 0.0001" in said
    assert all(line.startswith("anomnorm: warning: ") for line in said.splitlines())


def test_nothing_is_replaced_or_half_written(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    assert run("fit", "scores.csv", *RATE, "-o", "x.safetensors")[0] == 0
    Path("out.csv").write_text("old")
    command = ["apply", "x.safetensors", "scores.csv", "-o", "out.csv"]
    assert run(*command) == (1, "", "anomnorm: error: out.csv exists already; replace it with --force.\n")
    monkeypatch.setattr(text, "BLOCK", 1000)
    content = Path("scores.csv").read_text()
    Path("scores.csv").write_text(content + "end,oops,0\n")
    code, _, said = run(*command, "--force")
    assert (code, said) == (1, f"anomnorm: error: scores.csv, line {N + M + 2}, column 'score': 'oops' is no number.\n")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    Path("scores.csv").write_text(content)
    with monkeypatch.context() as patch:
        patch.setattr(text.TextTable, "_by_numpy", interrupted)
        assert run(*command, "--force") == (130, "", "anomnorm: error: interrupted; no file was left unfinished\n")
    assert Path("out.csv").read_text() == "old"
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["out.csv", "scores.csv", "x.safetensors"]
    # A table may be replaced by its own result.
    assert run("apply", "x.safetensors", "scores.csv", "--force", "-o", "scores.csv")[0] == 0
    assert len(read("scores.csv")) == N + M
    code, _, said = run("apply", "x.safetensors", "scores.csv", "--force", "-o", "scores.csv")
    assert (code, said) == (
        1,
        "anomnorm: error: scores.csv: there is a column 'normalized_score' already; rename it.\n",
    )
    assert (
        "is a folder" in run("apply", "x.safetensors", "scores.csv", "-o", "none/x.csv")[2] or not Path("none").exists()
    )
    assert run("apply", "x.safetensors", "scores.csv", "-o", "x.npz")[0] == 1


def test_a_file_that_is_being_written_is_not_there_yet() -> None:
    with replacing("x") as file:
        file.write(b"half")
        file.flush()
        assert not Path("x").exists()
    assert Path("x").read_bytes() == b"half"


@pytest.mark.clause("T4")
def test_set_threshold_and_show(run: Callable[..., tuple[int, str, str]]) -> None:
    Normalizer.cdf((0.1, 0.4), threshold=3.0).save("x.safetensors")
    assert run("set-threshold", "x.safetensors", "2.5", "--units", "sigmas")[0] == 0
    moved = Normalizer.load("x.safetensors")
    assert float(moved.thresholds["image"].raw) == pytest.approx(np.exp(0.1 + 0.4 * 2.5))
    assert run("set-threshold", "x.safetensors", "-1", "-o", "y.safetensors")[0] == 0
    assert Normalizer.load("y.safetensors").thresholds["image"].sigmas == -1
    assert Normalizer.load("x.safetensors").thresholds["image"].sigmas == 2.5
    assert run("set-threshold", "x.safetensors", "1", "-o", "y.safetensors")[0] == 1
    assert run("set-threshold", "x.safetensors")[0] == 2
    code, out, _ = run("show", "x.safetensors")
    assert (code, out) == (0, moved.summary() + "\n")
    image = json.loads(run("show", "x.safetensors", "--json")[1])["levels"]["image"]
    assert image["parameters"] == {"mean": 0.1, "std": 0.4}
    assert image["threshold"]["raw"] == float(moved.thresholds["image"].raw)
    assert (image["threshold"]["sigmas"], image["threshold"]["origin"]) == (2.5, "manual")
    maps = np.full((2, 3), 0.1), np.linspace(0.1, 0.6, 6).reshape(2, 3)
    Normalizer.cdf((0.1, 0.4), maps, threshold=3.0).save("z.safetensors")
    pixel = json.loads(run("show", "z.safetensors", "--json")[1])["levels"]["pixel"]
    assert pixel["parameters"]["std"] == {"shape": [2, 3], "min": 0.1, "max": 0.6}
    Path("z.safetensors").write_bytes(b"no")
    code, _, said = run("show", "z.safetensors")
    assert code == 1
    assert said.startswith("anomnorm: error: z.safetensors: ")


def test_report(run: Callable[..., tuple[int, str, str]]) -> None:
    write()
    assert run("fit", "scores.csv", *RATE, "-o", "x.safetensors")[0] == 0
    columns = ["--label", "label", "--name", "path"]
    code, out, _ = run("report", "x.safetensors", "scores.csv", *columns, "--title", "Parts", "-o", "x.html")
    assert (code, out) == (0, f"x.html: a page about x.safetensors and {N + M} scores\n")
    assert run("report", "x.safetensors", "-o", "y.html")[0] == 0
    page = Path("x.html").read_text("utf-8")
    assert "<title>Parts</title>" in page
    assert NAMES[int(np.argmax(np.where(LABELS == 0, SCORES, 0)))] in page  # the worst normal one


def test_help_and_programs(run: Callable[..., tuple[int, str, str]]) -> None:
    for command in ([], ["show"], ["fit"], ["apply"], ["set-threshold"], ["report"]):
        code, out, _ = run(*command, "--help")
        assert code == 0
        assert f"  anomnorm {' '.join(command)}" in out  # an example
    program = [sys.executable, "-m", "anomnorm_core", "show", "none.safetensors"]
    result = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert result.stderr == "anomnorm: error: none.safetensors: No such file or directory\n"
    result = subprocess.run([*program, "--debug"], capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" in result.stderr
