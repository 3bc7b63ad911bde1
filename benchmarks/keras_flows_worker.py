"""The Keras side of `image_flows.py`: reads commands from standard input, answers with CPU seconds."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
os.environ |= {"OMP_NUM_THREADS": "1"}

import numpy as np

import zoo
from zoo.export import export_model
from zoo.export.runners import open_artifact


def main():
    config = json.loads(sys.stdin.readline())
    model = zoo.get(config["method"], config["preset"], weights=None, **config["changes"])
    specs = {kind: model.signatures()[kind].inputs for kind in ("log_prob", "sample")}
    rng, sizes = np.random.default_rng(0), {"batch": config["batch_size"]}
    inputs = {kind: {name: spec.draw(rng, sizes) for name, spec in found.items()} for kind, found in specs.items()}
    with tempfile.TemporaryDirectory() as scratch:
        run = runner(model, config["runtime"], Path(scratch) / "bundle")
        print(json.dumps({"parameters": model.count_params()}), flush=True)
        for line in sys.stdin:
            kind, count = json.loads(line)
            start = time.process_time()
            for _ in range(count):
                run(kind, inputs[kind])
            print(json.dumps((time.process_time() - start) / count), flush=True)


def runner(model, runtime, directory):
    if runtime == "keras":
        return lambda kind, inputs: model.run(kind, **inputs)
    (artifact,) = export_model(model, directory, [runtime], benchmark=False).artifacts
    return open_artifact(runtime, {name: directory / path for name, path in artifact.paths.items()})


if __name__ == "__main__":
    main()
