"""`.keras` files in a process that knows nothing of them."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

import zoo
from zoo import compression


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A compressed model of the catalog with what it was trained by, and its output."""
    from zoo.experiments.nice import RECIPES
    from zoo.training.fine_tune import fine_tune

    model = compression.quantize_aware(zoo.get("nice"), 8, None)
    fine_tune(model, RECIPES["digits"], steps_per_epoch=1)
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model.save(path)
    inputs = np.arange(64, dtype="float32")[None] % 17
    np.save(path.with_name("inputs.npy"), inputs)
    np.save(path.with_name("outputs.npy"), keras.ops.convert_to_numpy(model(inputs)))
    return path


def test_a_fresh_process_needs_only_zoo(saved):
    code = (
        "import sys, numpy as np, zoo; folder = sys.argv[1]; model = zoo.load_model(folder + '/model.keras'); "
        "outputs = np.asarray(model(np.load(folder + '/inputs.npy'))); "
        "np.testing.assert_allclose(outputs, np.load(folder + '/outputs.npy'), rtol=1e-6, atol=1e-6); "
        "assert type(model.optimizer.get_config()).__name__ == 'dict'"
    )
    subprocess.run([sys.executable, "-c", code, str(saved.parent)], check=True)


def test_no_module_outside_of_the_package_is_imported(saved, tmp_path):
    """A file that names other modules does not get them imported."""
    (tmp_path / "evil_module.py").write_text("open(__file__ + '.was_imported', 'w')")
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "config.json":
                config = json.loads(data)
                config["config"]["model"]["module"] = "evil_module"
                data = json.dumps(config).encode()
            target.writestr(name, data)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import zoo; zoo.load_model(sys.argv[1] + '/model.keras')"
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode and "evil_module" in result.stderr
    assert not (tmp_path / "evil_module.py.was_imported").exists()


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.keras").write_text("no archive")
    with pytest.raises(ValueError, match=r"must be a \.keras file"):
        zoo.load_model(tmp_path / "text.keras")
    with pytest.raises(FileNotFoundError):
        zoo.load_model(tmp_path / "missing.keras")
