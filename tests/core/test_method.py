"""A method is a value, found by its name: its own package's, registered ones, and those of installed packages."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from anomnorm_core import FileFormatError, InvalidScoreWarning, Method, Normalizer, OptionError, min_max
from anomnorm_core.method import Registry
from anomnorm_core.methods import METHODS, cdf

OTHER = replace(min_max.KERNELS, method=replace(min_max.METHOD, name="other", package="anomnorm-other"))


def test_the_methods_of_the_package() -> None:
    # Others may be registered in this process.
    assert list(METHODS)[:4] == ["min-max", "two-slope", "cdf", "normal"]
    assert len(METHODS) >= 4
    assert "cdf" in METHODS
    assert "magic" not in METHODS
    assert METHODS["cdf"] is cdf.KERNELS
    with pytest.raises(
        OptionError, match="method='magic' is unknown; there are 'min-max', 'two-slope', 'cdf', 'normal'"
    ):
        METHODS["magic"]
    for wrong, meant in (("minmax", "min-max"), ("CDF", "cdf"), ("two_slope", "two-slope")):
        with pytest.raises(OptionError, match=f"Did you mean '{meant}'"):
            METHODS[wrong]


def test_a_registered_method() -> None:
    methods = Registry("anomnorm_test.none", (min_max.KERNELS,))
    methods.register(OTHER)
    methods.register(OTHER)  # the same again
    assert list(methods) == ["min-max", "other"]
    assert methods["other"] is OTHER
    with pytest.raises(OptionError, match="a method of the name 'other' is registered already"):
        methods.register(replace(OTHER, method=replace(OTHER.method, per_pixel=True)))


def test_a_method_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def entry_points(group: str) -> list[SimpleNamespace]:
        assert group == "anomnorm_test.methods"
        return [SimpleNamespace(name="other", load=lambda: loaded.append("other") or OTHER)]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    methods = Registry("anomnorm_test.methods", (min_max.KERNELS,))
    assert list(methods) == ["min-max", "other"]
    assert "other" in methods
    assert not loaded  # which is imported when it is asked for
    assert methods["other"] is methods["other"] is OTHER
    assert len(loaded) == 1


@pytest.mark.clause("P3")
def test_a_file_of_a_method_that_is_not_installed_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS._kernels, "other", OTHER)
    normalizer = Normalizer.of("other", (0.0, 4.0), (0.0, 1.0), threshold=1.0, options={"shared_range": True})
    normalizer.save(tmp_path / "n")
    loaded = Normalizer.load(tmp_path / "n")
    assert loaded.summary() == normalizer.summary()
    assert loaded(np.array([0.5, 1.0]))["pred_labels"].tolist() == [False, True]
    monkeypatch.delitem(METHODS._kernels, "other")
    with pytest.raises(
        FileFormatError, match=r"method='other' is unknown.*It comes from 'anomnorm-other': pip install"
    ):
        Normalizer.load(tmp_path / "n")


def test_options_of_a_method() -> None:
    assert cdf.METHOD.parse_options({}) == {"center": "image"}
    assert cdf.METHOD.parse_options({"center": "pixel"}) == {"center": "pixel"}
    assert min_max.METHOD.parse_options({"shared_range": True}) == {"shared_range": True}
    for given, message in (
        ({"center": "nowhere"}, "center='nowhere' is not an option; use one of 'image', 'pixel'"),
        ({"centre": "image"}, "centre='image' is not an option of cdf normalization; there are 'center'"),
    ):
        with pytest.raises(OptionError, match=message):
            cdf.METHOD.parse_options(given)
    for wrong in (1, 0.0, "True", None):  # 1 == True, and is none all the same
        with pytest.raises(OptionError, match="shared_range="):
            min_max.METHOD.parse_options({"shared_range": wrong})
    plain = Method(name="plain", parameters=("a",))
    with pytest.raises(OptionError, match="there are none"):
        plain.parse_options({"b": 1})


@pytest.mark.clause("N10")
def test_extras_of_a_method() -> None:
    assert cdf.METHOD.parse_extras("z") == ("z",)
    assert cdf.METHOD.parse_extras(["raw", "z", "raw"]) == ("raw", "z")
    assert min_max.METHOD.parse_extras(()) == ()
    with pytest.raises(OptionError, match="extras: min-max normalization has no 'z'; there are 'margin', 'raw'"):
        min_max.METHOD.parse_extras(["z"])


def test_units_of_a_method() -> None:
    assert (cdf.METHOD.units, min_max.METHOD.units) == ("sigmas", "raw")


@pytest.mark.clause("S6")
def test_a_normalizer_of_a_record_says_what_was_left_out() -> None:
    record = cdf.update(cdf.init(), np.array([1.0, 2.0, 3.0, -1.0, 0.0]))
    with pytest.warns(InvalidScoreWarning, match="of 5 image-level values 1 is zero and 1 negative"):
        Normalizer.cdf(record, threshold=1.0)


def test_functions_that_a_method_lacks_are_noticed_when_it_is_registered() -> None:
    methods = Registry("anomnorm_test.none", (), host=True)
    without = replace(cdf.KERNELS, method=replace(cdf.METHOD, name="half"), raw_threshold=None)
    with pytest.raises(OptionError, match="half normalization has sigmas: its kernels in core need raw_threshold"):
        methods.register(without)
    Registry("anomnorm_test.none", ()).register(without)  # of another package, where core has them
    with pytest.raises(OptionError, match="half normalization: its extras lack 'z'"):
        methods.register(replace(without, extras={}))
    with pytest.raises(OptionError, match="the parameters min, max, and image got 3 of them"):
        Normalizer.min_max(np.array([1.0, 2.0, 3.0]), threshold=1.0)
