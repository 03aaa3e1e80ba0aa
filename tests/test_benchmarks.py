"""Benchmarks are run by hand, so nothing else would say that one names what has moved."""

import importlib
import pkgutil

import pytest

import benchmarks


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(benchmarks.__path__)])
def test_every_benchmark_can_be_loaded(name: str):
    assert importlib.import_module(f"benchmarks.{name}").__doc__
