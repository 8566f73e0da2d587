"""Every example in a docstring runs, and every public name has one line that says what it does."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import twinrun as tr


def modules() -> list[str]:
    found = pkgutil.walk_packages(tr.__path__, "twinrun.")
    return sorted(m.name for m in found if not m.name.endswith("__main__"))


@pytest.mark.parametrize("name", modules())
def test_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    public = {n: getattr(tr, n) for n in tr.__all__} | {"torch": torch}
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with torch.random.fork_rng():
        for example in finder.find(module, name, globs={**public, **vars(module)}):
            if example.examples:
                runner.run(example)
    assert runner.failures == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [e for n in modules() for e in finder.find(importlib.import_module(n), n) if e.examples]
    assert len(found) >= 12


def test_public_names_exist_and_are_documented() -> None:
    for name in tr.__all__:
        value = getattr(tr, name)
        assert name == "__version__" or (value.__doc__ and value.__doc__.strip()), name
    with pytest.raises(AttributeError, match="has no attribute 'verfy'"):
        tr.verfy  # noqa: B018  the access is the test
