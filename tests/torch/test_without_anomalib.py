"""The module for anomalib where that is not installed; tests/anomalib has the others."""

import importlib
import sys

import pytest


def test_a_missing_anomalib_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "anomalib", None)
    monkeypatch.delitem(sys.modules, "anomnorm_torch.anomalib", raising=False)
    with pytest.raises(ModuleNotFoundError, match="pip install 'anomalib>="):
        importlib.import_module("anomnorm_torch.anomalib")
