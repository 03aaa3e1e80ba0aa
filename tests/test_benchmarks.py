"""Benchmarks are run by hand, so nothing else would say that one names what has moved."""

import importlib
import pkgutil
import sys

import pytest

import benchmarks
import benchmarks.gpu
import benchmarks.localisation


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(benchmarks.__path__)])
def test_every_benchmark_can_be_loaded(name: str):
    assert importlib.import_module(f"benchmarks.{name}").__doc__


@pytest.mark.parametrize("flag", ["--checkpoint", "--world"])
def test_a_model_without_its_world_or_a_world_without_its_model_is_refused(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(sys, "argv", ["localisation", flag, "given"])
    with pytest.raises(SystemExit, match="2"):
        benchmarks.localisation.main()
    assert "go together" in capsys.readouterr().err


def test_the_gpu_benchmark_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(benchmarks.gpu, "MATRIX", {"cpu": 64})
    monkeypatch.setattr(benchmarks.gpu, "SIZE", 64)
    monkeypatch.setattr(benchmarks.gpu, "compiled_gain", lambda *given: 1.0)
    arguments = ["--device", "cpu", "--architecture", "r3d_18_w16", "--clips", "3", "--frames", "4"]
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    benchmarks.gpu.main()
    said = capsys.readouterr().out
    assert "mixed lengths" in said
    assert "of fp32's peak" in said
