"""The pass over the normal data reads whatever loader the training has, and leaves it alone (clause L3)."""

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from expected import moments
from scripted_module import ScriptedModule, fitted, loader, parameters, samples, trainer
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from anomnorm_core import AnomnormError, OptionError
from anomnorm_torch import CdfNormalizationCallback

RNG = np.random.default_rng(71)
SCORES = np.exp(RNG.normal(size=20)).astype("f4")
DATA = samples(SCORES)
VALIDATION = samples(np.exp(RNG.normal(size=4)).astype("f4"))
pytestmark = [
    pytest.mark.clause("L3"),
    # Some of these validate in the middle of their only epoch.
    pytest.mark.filterwarnings("ignore:the final weights are"),
]


class Watching(ScriptedModule):
    """Keeps what it is trained on."""

    def __init__(self, make: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.trained_on: list[list[float]] = []
        self.make = make
        if make is not None:
            self.train_dataloader = self.make_loader  # type: ignore[method-assign]

    def make_loader(self) -> Any:
        assert self.make is not None
        return self.make()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.trained_on.append(batch["score"].tolist())
        return 0.0 * self.gain

    def on_train_epoch_end(self) -> None:
        """Let the weights be as they are."""


def train(data: Any, callback: Any = None, module: Any = None, **options: Any) -> tuple[Watching, Any]:
    torch.manual_seed(0)
    random.seed(0)
    module = Watching() if module is None else module
    run = trainer(*([callback] if callback else []), **options)
    run.fit(module, data, loader(VALIDATION))
    return module, run


def assert_fitted_on(module: Any, scores: np.ndarray) -> None:
    assert fitted(module).valid == len(scores)
    np.testing.assert_allclose(parameters(module), moments(scores), rtol=1e-6, atol=1e-7)


# Loaders, each of which gives the scores of DATA, maybe in another order, in batches of four.


INNER: list[DataLoader[Any]] = []  # loaders inside of others


class Wrapping:
    def __init__(self, **options: Any) -> None:
        self.inner = loader(DATA, 4, **options)
        INNER.append(self.inner)

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Any]:
        yield from self.inner


class Answering(Wrapping):
    """Answers for the loader inside it, as wrappers of libraries do."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def closing_over(**options: Any) -> Any:
    inner = loader(DATA, 4, **options)
    INNER.append(inner)

    class Closing:
        def __len__(self) -> int:
            return 5

        def __iter__(self) -> Iterator[Any]:
            yield from inner

    return Closing()


class Making:
    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Any]:
        yield from loader(DATA, 4, num_workers=1, persistent_workers=True)


class Shuffling:
    """Shuffles its order in place, with a generator of its own."""

    def __init__(self, kind: str) -> None:
        self.order: Any = np.arange(len(DATA)) if kind == "numpy" else list(range(len(DATA)))
        self.generator: Any = np.random.default_rng(5) if kind == "numpy" else random.Random(5)

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Any]:
        self.generator.shuffle(self.order)
        for first in range(0, len(DATA), 4):
            yield default_collate([DATA[i] for i in self.order[first : first + 4]])


class Stream(IterableDataset[Any]):
    """Is its own iterator."""

    def __iter__(self) -> Any:
        self.position = -1
        return self

    def __next__(self) -> Any:
        self.position += 1
        if self.position == len(DATA):
            raise StopIteration
        return DATA[self.position]


class OwnIterator(Stream):
    def __len__(self) -> int:
        return 5

    def __next__(self) -> Any:
        return default_collate([super(OwnIterator, self).__next__() for _ in range(4)]) if self.position < 19 else end()


def end() -> Any:
    raise StopIteration


class Augmenting(Dataset[Any]):
    """Draws from generators of its own: what a process has scored must not change what it is trained on."""

    def __init__(self) -> None:
        self.transform = {"numpy": np.random.default_rng(1), "random": random.Random(2)}
        self.legacy = np.random.RandomState(3)
        self.drawn = torch.Generator().manual_seed(4)

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> Any:
        noise = self.transform["numpy"].random() + self.transform["random"].random() + self.legacy.random_sample()
        return {"score": 1.0 + noise + torch.rand((), generator=self.drawn), "label": torch.tensor(0)}


WORKERS: dict[str, Any] = {"num_workers": 1, "persistent_workers": True}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: loader(DATA, 4, shuffle=True, generator=seeded()),
    "without a generator": lambda: loader(DATA, 4, shuffle=True),
    "of torch's batch sampler": lambda: DataLoader(
        DATA,  # type: ignore[arg-type]
        batch_sampler=BatchSampler(RandomSampler(DATA, generator=seeded()), 4, drop_last=False),
    ),
    "wrapping": lambda: Wrapping(shuffle=True, generator=seeded()),
    "answering": lambda: Answering(shuffle=True, generator=seeded()),
    "closing over a generator": lambda: closing_over(shuffle=True, generator=seeded()),
    "shuffling an array": lambda: Shuffling("numpy"),
    "shuffling a list": lambda: Shuffling("random"),
    "its own iterator": OwnIterator,
}
IN_THE_MIDDLE = {"val_check_interval": 3, "max_epochs": 2}


@pytest.mark.clause("L10")
@pytest.mark.parametrize("name", LOADERS)
def test_training_sees_what_it_sees_without_the_callback(name: str) -> None:
    plain, without = train(LOADERS[name](), **IN_THE_MIDDLE)
    module, run = train(LOADERS[name](), CdfNormalizationCallback(1.0), **IN_THE_MIDDLE)
    assert run.global_step == without.global_step == 10
    assert module.trained_on == plain.trained_on
    assert_fitted_on(module, SCORES)


@pytest.mark.clause("L10")
@pytest.mark.parametrize("make", [lambda: Wrapping(**WORKERS), lambda: closing_over(**WORKERS), Making])
def test_persistent_workers_inside_a_loader_go_on_with_the_training(make: Any) -> None:
    INNER.clear()
    module, run = train(make(), CdfNormalizationCallback(1.0), **IN_THE_MIDDLE)
    for inner in INNER:
        inner._iterator._shutdown_workers()  # type: ignore[union-attr]  # torch waits five seconds for those it finds
    assert run.global_step == 10
    assert np.concatenate(module.trained_on).tolist() == [*SCORES, *SCORES]
    assert_fitted_on(module, SCORES)


@pytest.mark.clause("L10")
def test_random_numbers_of_data_sets_are_put_back() -> None:
    plain, _ = train(loader(Augmenting(), 4), **IN_THE_MIDDLE)  # type: ignore[arg-type]
    module, _ = train(loader(Augmenting(), 4), CdfNormalizationCallback(1.0), **IN_THE_MIDDLE)  # type: ignore[arg-type]
    assert module.trained_on == plain.trained_on


class Remembering(Dataset[Any]):
    """Gives each sample with the one before it and with how many were read, and keeps what it has loaded."""

    def __init__(self) -> None:
        self.reads, self.before, self.loaded = 0, None, {}  # type: ignore[var-annotated]

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> Any:
        sample = self.loaded.setdefault(index, DATA[index])
        now = sample["score"]
        mixed = now if self.before is None else now + 0.1 * self.before
        self.reads, self.before = self.reads + 1, now
        return sample | {"score": mixed + self.reads}


@pytest.mark.clause("L10")
@pytest.mark.filterwarnings("ignore:.*below z = -2:anomnorm_core.FitWarning")
def test_what_a_data_set_counts_and_remembers_is_put_back_and_its_cache_stays() -> None:
    found = []
    for callback in (None, CdfNormalizationCallback(1.0)):
        data = Remembering()
        inside: Any = Subset(ConcatDataset([data]), range(8))
        module, _ = train(loader(inside, 4), callback, val_check_interval=1, max_epochs=2)
        found.append((module.trained_on, data.reads, data.before))
        assert len(data.loaded) == 8
    assert found[0] == found[1]


@pytest.mark.clause("L10")
def test_samplers_may_keep_their_order_in_anything() -> None:
    class Keeping(Sampler[int]):
        def __init__(self, order: Any) -> None:
            self.order, self.first = order, random.Random(4)

        def __len__(self) -> int:
            return len(DATA)

        def __iter__(self) -> Iterator[int]:
            for _ in range(len(DATA)):
                place = self.first.randrange(4)
                if isinstance(self.order, torch.Tensor):
                    flat = self.order.view(-1)
                    flat[place], flat[-1] = flat[-1].clone(), flat[place].clone()
                    yield int(flat[place])
                elif isinstance(self.order, dict):
                    self.order[place], self.order[19] = self.order[19], self.order[place]
                    yield self.order[place]
                else:
                    self.order.rotate(1)
                    yield self.order[place]

    orders: list[Callable[[], Any]] = [
        lambda: deque(range(20)),
        lambda: dict(enumerate(range(20))),
        lambda: torch.arange(20.0).reshape(4, 5),
    ]
    for make in orders:
        plain, _ = train(loader(DATA, 4, sampler=Keeping(make())), **IN_THE_MIDDLE)
        module, _ = train(loader(DATA, 4, sampler=Keeping(make())), CdfNormalizationCallback(1.0), **IN_THE_MIDDLE)
        assert module.trained_on == plain.trained_on


@pytest.mark.clause("L10")
def test_a_data_set_that_is_its_own_iterator_keeps_its_place() -> None:
    with pytest.warns(UserWarning, match="reads the first 3 batches of a loader without a length") as caught:
        module, run = train(loader(Stream(), 4), CdfNormalizationCallback(1.0), **IN_THE_MIDDLE)  # type: ignore[arg-type]
    assert len([each for each in caught if "limit_batches" in str(each.message)]) == 1
    assert run.global_step == 10
    assert np.concatenate(module.trained_on).tolist() == [*SCORES, *SCORES]
    assert_fitted_on(module, SCORES[:12])  # of a stream as many batches as lie between validations
    stream: Any = loader(Stream(), 4)
    module, _ = train(stream, CdfNormalizationCallback(1.0, limit_batches=1.0), val_check_interval=3)
    assert_fitted_on(module, SCORES)


def test_a_loader_class_with_an_own_iteration_is_fitted_on_what_it_gives() -> None:
    class Scaled(DataLoader[Any]):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                yield {"score": 10.0 * batch["score"], "label": batch["label"]}

    module, _ = train(Scaled(DATA, 4, shuffle=True), CdfNormalizationCallback(1.0))  # type: ignore[arg-type]
    assert_fitted_on(module, 10 * SCORES)


def test_a_sampler_that_selects_is_used_as_it_is() -> None:
    chosen = [3, 5, 8, 13, 1, 2, 0]
    sampler: Any
    for sampler in (SubsetRandomSampler(chosen), chosen):
        whole = DataLoader(DATA, batch_sampler=BatchSampler(sampler, 4, drop_last=True))  # type: ignore[arg-type]
        for data in (loader(DATA, 4, sampler=sampler, drop_last=True), whole):
            module, _ = train(data, CdfNormalizationCallback(1.0))
            assert_fitted_on(module, SCORES[chosen])
    torch.manual_seed(0)
    drawn = list(RandomSampler(DATA, replacement=True, num_samples=6, generator=seeded()))
    module, _ = train(
        loader(DATA, 4, sampler=RandomSampler(DATA, replacement=True, num_samples=6, generator=seeded())),
        CdfNormalizationCallback(1.0),
        max_epochs=1,
    )
    assert fitted(module).valid == len(drawn)


class Forever(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield from range(len(DATA))


class ForeverInBatches(Sampler[list[int]]):
    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield from ([i, i + 1] for i in range(0, len(DATA), 2))

    def __len__(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("data", "options", "count"),
    [
        (lambda: loader(DATA, 4, sampler=Forever()), {"limit_train_batches": 3}, 12),
        (lambda: DataLoader(DATA, batch_sampler=ForeverInBatches()), {}, 14),  # type: ignore[arg-type]
    ],
    ids=["without a length", "beyond its length"],
)
def test_samplers_without_an_end(data: Any, options: Any, count: int) -> None:
    module, run = train(data(), CdfNormalizationCallback(1.0), **options)
    assert run.global_step == len(module.trained_on)
    assert_fitted_on(module, SCORES[:count])


# What cannot be read beside the training.


def generating() -> Iterator[Any]:
    yield from loader(DATA, 4)


class Once(OwnIterator):
    def __init__(self) -> None:
        self.position = -1

    def __iter__(self) -> Any:
        return self


class Holding(Wrapping):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = [held]


class Infinite(DataLoader[Any]):
    """Keeps its iterator, as loaders of some detectors do, so that workers go on from epoch to epoch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.iterator = super().__iter__()

    def __iter__(self) -> Iterator[Any]:
        for _ in range(len(self)):
            try:
                yield next(self.iterator)
            except StopIteration:
                self.iterator = super().__iter__()
                yield next(self.iterator)


UNREPEATABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "generator": (generating, "the loader is a generator, which can be read once"),
    "iterator": (lambda: iter([default_collate(DATA[:4])] * 3), "is a list_iterator, which can be read once"),
    "own iterator": (Once, "Once is its own iterator and goes on where it was"),
    "generator inside": (lambda: Holding(generating()), "Holding.held is a generator, which can be read once"),
    "lock": (lambda: Holding(threading.Lock()), "Holding.held cannot be copied .*lock"),
    "running iterator": (lambda: Infinite(DATA, 4), "Infinite.iterator is a running iterator of a DataLoader"),
}


@pytest.mark.parametrize("name", UNREPEATABLE)
def test_what_cannot_be_read_beside_the_training_is_refused_before_it(name: str) -> None:
    make, reason = UNREPEATABLE[name]
    module = Watching()
    remedy = r"Let train_dataloader\(\) make the loader anew.*calibration_loader=.*source=\"validation\""
    match = f"statistics of CdfNormalizationCallback cannot read the training data .*{reason}.*{remedy}"
    with pytest.raises(AnomnormError, match=match):
        train(make(), CdfNormalizationCallback(1.0), module)
    assert module.trained_on == []


@pytest.mark.parametrize("name", UNREPEATABLE)
def test_or_made_anew_by_the_hook_that_made_it(name: str) -> None:
    make, _ = UNREPEATABLE[name]
    plain, _ = train(None, None, Watching(make), max_epochs=1)
    module, _ = train(None, CdfNormalizationCallback(1.0), Watching(make), max_epochs=1)
    assert module.trained_on == plain.trained_on
    assert_fitted_on(module, np.tile(SCORES[:4], 3) if name == "iterator" else SCORES)


def test_a_hook_that_gives_the_same_loader_again_does_not_help() -> None:
    data = generating()
    with pytest.raises(AnomnormError, match="cannot read the training data"):
        train(None, CdfNormalizationCallback(1.0), Watching(lambda: data))


# Data for the pass alone.

CALIBRATION: dict[str, Any] = {
    "loader": lambda: loader(DATA, 3, shuffle=True, drop_last=True),
    "list of batches": lambda: [default_collate(DATA[:8]), default_collate(DATA[8:])],
    "list of loaders": lambda: [loader(DATA[:8]), loader(DATA[8:])],
    "iterable": lambda: Wrapping(),
    "function": lambda: lambda: generating(),
    "what cannot be copied": lambda: Holding(threading.Lock()),
}


@pytest.mark.parametrize("name", CALIBRATION)
def test_data_for_calibration(name: str) -> None:
    others = loader(samples(5 * SCORES), 4)
    callback = CdfNormalizationCallback(1.0, calibration_loader=CALIBRATION[name]())
    module, run = train(others, callback, max_epochs=2)
    assert_fitted_on(module, SCORES)
    run.validate(module, loader(VALIDATION), verbose=False)  # and without training data
    assert_fitted_on(module, SCORES)


def test_the_validation_data_with_workers_can_be_those_for_calibration() -> None:
    data = loader(DATA, 4, num_workers=1, persistent_workers=True)
    module = Watching()
    run = trainer(CdfNormalizationCallback(1.0, calibration_loader=data))
    run.fit(module, loader(VALIDATION), data)
    assert len(module.emitted) == 5
    assert_fitted_on(module, SCORES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration_loader": generating()}, "calibration_loader is a generator, which can be read once"),
        ({"calibration_loader": 3}, "calibration_loader is a int; give a loader"),
        ({"calibration_loader": [], "source": "validation"}, "are two sources"),
        ({"limit_batches": 0}, "limit_batches=0: give a number of batches, or a share"),
        ({"limit_batches": 1.5}, "limit_batches=1.5"),
        ({"limit_batches": True}, "limit_batches=True"),
        ({"every_n_validations": 0}, "every_n_validations=0: give a number of validation runs"),
        ({"every_n_validations": 1.5}, "every_n_validations=1.5"),
        ({"step": None}, "step=None is no name"),
    ],
)
def test_wrong_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CdfNormalizationCallback(1.0, **options)


def test_an_iterator_for_calibration_is_refused_before_the_training() -> None:
    # The first pass would begin where the trial has stopped.
    iterator = iter(loader(DATA))
    cases = (iterator, "which can be read once"), (lambda: iterator, "returns the same _Single.* again")
    for calibration_loader, message in cases:
        module = ScriptedModule()
        with pytest.raises(OptionError, match=message):
            trainer(CdfNormalizationCallback(1.0, calibration_loader=calibration_loader)).fit(
                module, loader(DATA), loader(VALIDATION)
            )
        assert module.gain == 1.0
    assert len(next(iterator)["score"]) > 0  # nothing was read
    anew = CdfNormalizationCallback(1.0, calibration_loader=lambda: iter(loader(DATA)))
    module = ScriptedModule()
    trainer(anew).fit(module, loader(DATA), loader(VALIDATION))
    assert fitted(module).valid == len(DATA)
