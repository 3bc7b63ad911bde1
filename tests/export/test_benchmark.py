import gzip
from pathlib import Path

import numpy as np
import pytest

from zoo.export import ExportError, benchmark, export_model


@pytest.fixture(scope="module")
def graph(conv_classifier, tmp_path_factory):
    directory = tmp_path_factory.mktemp("benchmark") / "b"
    export_model(conv_classifier, directory, ["onnx"], name="m", benchmark=False)
    return directory / "m.onnx"


def test_fresh_process_measures_latency_and_memory(graph, tmp_path):
    inputs = {"predict": {"image": np.zeros((1, 8, 8, 1), "float32")}}

    latency, memory = benchmark.measure("onnx", {"predict": graph}, inputs, tmp_path)

    assert 0 < latency["predict"] < 1000
    assert memory is None or 1e5 < memory < 1e9


def test_memory_is_unknown_without_proc(graph, monkeypatch):
    monkeypatch.setattr(benchmark, "_STATM", Path("/nowhere/statm"))
    request = {"format": "onnx", "paths": {"predict": str(graph)}}

    result = benchmark._measure_here(request, {"predict/image": np.zeros((1, 8, 8, 1), "float32")})

    assert result["memory_bytes"] is None
    assert result["latency_ms"]["predict"] > 0


def test_failing_process_is_reported(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no graph")

    with pytest.raises(ExportError, match=r"Measuring the 'onnx' artifact failed[\s\S]*does not load"):
        benchmark.measure("onnx", {"f": tmp_path / "m.onnx"}, {"f": {"x": np.zeros(1)}}, tmp_path)


def test_gzip_size_is_what_gzip_makes(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1000))

    assert benchmark.gzip_size([tmp_path / "a"]) == len(gzip.compress(bytes(1000), 6, mtime=0))
