"""Every class, method, argument and attribute of the founding API pages exists."""

import inspect
import logging

import pytest
import pytorch_lightning as pl

from anomnorm_torch.callbacks import cdf_normalization, min_max_normalization

HOOK = ["_trainer", "pl_module", "outputs", "_batch", "_batch_idx", "_dataloader_idx"]
STAGE = ["trainer", "pl_module"]
COMMON = {
    "setup": [*STAGE, "stage"],
    "on_test_start": STAGE,
    "on_validation_batch_end": HOOK,
    "on_test_batch_end": HOOK,
    "on_predict_batch_end": HOOK,
    "_normalize_batch": ["outputs", "pl_module"],
}
CDF = COMMON | {
    "on_validation_epoch_start": STAGE,
    "_collect_stats": STAGE,
    "_create_inference_model": ["pl_module"],
    "_standardize_batch": ["outputs", "pl_module"],
}
METHODS = [(min_max_normalization.MinMaxNormalizationCallback, name, args) for name, args in COMMON.items()]
METHODS += [(cdf_normalization.CdfNormalizationCallback, name, args) for name, args in CDF.items()]
STATIC = {"_create_inference_model", "_standardize_batch", "_normalize_batch"}


@pytest.mark.parametrize(("owner", "name", "arguments"), METHODS, ids=lambda value: getattr(value, "__name__", None))
def test_methods_have_the_founding_signatures(owner: type, name: str, arguments: list[str]) -> None:
    static = isinstance(inspect.getattr_static(owner, name), staticmethod)
    assert static == (name in STATIC)
    parameters = list(inspect.signature(getattr(owner, name)).parameters)
    assert parameters == (arguments if static else ["self", *arguments])


@pytest.mark.parametrize("owner", [METHODS[0][0], METHODS[-1][0]])
def test_they_are_lightning_callbacks_that_need_no_argument(owner: type) -> None:
    assert issubclass(owner, pl.Callback)
    assert isinstance(owner(), pl.Callback)


def test_optional_arguments_of_the_founding_pages_are_optional() -> None:
    for owner, _, _ in (METHODS[0], METHODS[-1]):
        assert inspect.signature(owner.setup).parameters["stage"].default is None
        # Lightning passes the index of the loader only where there are several.
        assert inspect.signature(owner.on_test_batch_end).parameters["_dataloader_idx"].default == 0


def test_the_cdf_module_has_a_logger() -> None:
    assert isinstance(cdf_normalization.logger, logging.Logger)
    assert cdf_normalization.logger.name == "anomnorm_torch.callbacks.cdf_normalization"
