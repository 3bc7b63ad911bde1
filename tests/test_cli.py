import json
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest

import zoo
from zoo import catalog, cli
from zoo.cli import exporting, terminal

TEXT = "It is a truth"


def run(capsys, *words):
    """Runs the command line in this process; returns exit code, standard output and standard error."""
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as end:  # argparse ends so
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *words):
    """Runs words that are bad input; returns the one line of the error."""
    code, out, err = run(capsys, *words)
    last = err.splitlines()[-1]

    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert "error: " in last
    return last


@pytest.mark.parametrize("chosen", [None, "0"])
def test_fast_kernels_are_on_unless_chosen_otherwise(chosen, capsys, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", chosen or "")
    if chosen is None:
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    assert run(capsys, "list", "nice")[0] == 0
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == (chosen or "1")


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A small trained-looking preset of compressive_transformer."""
    from zoo.experiments import language_models as lm
    from zoo.training.run import dataset_record

    sizes = dict(
        num_layers=1, hidden_dim=32, num_heads=2, intermediate_dim=64, window_length=8, memory_length=8,
        compressed_memory_length=4, initializer_stddev=0.3,
    )  # fmt: skip
    model = zoo.get("compressive_transformer", weights=None, **sizes, **lm.vocabulary("austen"))
    lm.prepare(model, "austen")
    metrics = {"test_bits_per_character": 6.25}
    directory = tmp_path_factory.mktemp("presets") / "language_model"
    return model.save_to_preset(directory, dataset=dataset_record("austen"), metrics=metrics)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A small preset of nice without recorded data."""
    model = zoo.get("nice", weights=None, num_features=16, num_hidden_layers=1, hidden_dim=8)
    return model.save_to_preset(tmp_path_factory.mktemp("presets") / "flow")


@pytest.fixture(scope="module")
def bundle(language_model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundles") / "bundle"
    words = ["export", language_model, "--format", "litert", "--output", directory]
    assert cli.main([str(word) for word in words]) == 0
    return directory


# === Fast and lazy ===


def seconds(*words):
    """Returns the processor time of a process: a busy machine stretches the clock, not the work."""

    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def once():
        start = spent()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        return spent() - start

    return min(once() for _ in range(3))


@pytest.mark.parametrize("words", [["--help"], ["list"], ["info", "nice"], ["export", "--help"]])
def test_help_and_facts_are_quick(words):
    # Beyond the bare interpreter
    assert seconds("-m", "zoo.cli", *words) - seconds("-c", "pass") < 0.5


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["list", "--json"], 0),
        (["info", "nice"], 0),
        (["info", "nise"], 2),
        (["generate", "nise", "--prompt", "x"], 2),
        (["export", "nice", "--preset", "digit", "--output", "x"], 2),
        (["train", "nice", "--dataset", "nothing"], 2),
        (["export", "nice", "--output", "x", "--format", "tflite"], 2),
        (["finetune", "real_to_binary", "--dataset", "nothing"], 2),
        (["finetune", "real_to_binary", "--dataset", "nothing.csv"], 2),
        ([], 2),
    ],
)
def test_facts_and_bad_words_load_no_tensorflow(words, code):
    script = (
        "import sys\nfrom zoo import cli\n"
        f"try:\n    code = cli.main({words})\nexcept SystemExit as end:\n    code = end.code\n"
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules], code or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == f"[] {code}"


def test_the_script_is_quiet_and_its_errors_are_one_line(tmp_path):
    words = [sys.executable, "-m", "zoo.cli", "generate", str(tmp_path), "--prompt", "x"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "Loading the model"
    assert done.stderr.splitlines()[1:] == [
        f"zoo: error: A preset directory must hold 'metadata.json'. Received: [] in {str(tmp_path)!r}"
    ]


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m zoo.cli info nice --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)

    assert done.stdout == "{\n"
    assert done.stderr == ""


# === list, info ===


def test_list_prints_every_method(capsys):
    code, out, _ = run(capsys, "list")

    assert code == 0
    assert all(name in out for name in zoo.list_models())
    # Room is left for what the method is
    assert "Trains" in out


def test_list_filters(capsys):
    _, out, _ = run(capsys, "list", "*transformer*", "--task", "language_modeling", "--json")
    assert [entry["name"] for entry in json.loads(out)] == zoo.list_models("*transformer*", task="language_modeling")

    _, out, _ = run(capsys, "list", "--trained", "--json")
    assert [entry["name"] for entry in json.loads(out)] == zoo.list_models(trained=True)


def test_info_as_json_holds_every_preset(capsys):
    code, out, _ = run(capsys, "info", "transformer_xl", "--json")
    facts = json.loads(out)

    assert code == 0
    assert facts["paper"]["year"] == 2019
    assert facts["presets"]["enwik8_large"]["parameters"] == 277231820
    assert set(facts["presets"]) == set(zoo.info("transformer_xl").presets)


def test_info_shows_presets_and_notes(capsys):
    _, out, _ = run(capsys, "info", "transformer_xl")

    assert "wt103_large" in out
    assert "285,205,322" in out
    assert "Note: " in out


def test_brackets_in_facts_are_no_markup(capsys):
    class Toy:
        pass

    zoo.register(Toy, name="toy", title="Toy", task="toys", presets={"base": {}}, summary="values in [red] and [/red]")
    try:
        _, out, _ = run(capsys, "list", "toy")
    finally:
        zoo.unregister("toy")

    assert "[red] and [/red]" in re.sub(r"\s+", " ", out)


# === Bad input ===


def test_unknown_names_offer_the_closest(capsys):
    assert "Did you mean 'transformer_xl'" in refused(capsys, "info", "transformerxl")
    assert "'digits'" in refused(capsys, "export", "nice", "--preset", "digit", "--output", "out")
    assert "'language_modeling'" in refused(capsys, "list", "--task", "language_modelling")
    assert "'austen'" in refused(capsys, "train", "transformer_xl", "--dataset", "austin")


@pytest.mark.parametrize("command", ["generate", "evaluate", "export"])
def test_weights_that_are_not_shipped(command, capsys, tmp_path):
    words = ["--output", tmp_path / "out"] if command == "export" else []
    line = refused(capsys, command, "transformer_xl", "--preset", "enwik8_large", *words)

    assert "No trained weights are shipped for preset 'enwik8_large'" in line
    assert "--weights" not in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--prompt", ""], "empty"),
        (["--prompt", "日本"], "Characters outside the vocabulary: ['日', '本']"),
        ([], "--prompt"),
        (["--prompt", TEXT, "--top-k", "1000"], "top_k"),
        (["--prompt", TEXT, "--preset", "austen"], "--preset"),
        (["--prompt", TEXT, "--temperature", "nan"], "temperature"),
        (["--prompt", TEXT, "--max-new-tokens", "0"], "max-new-tokens"),
    ],
)
def test_bad_prompts_and_settings(words, part, capsys, language_model):
    assert part in refused(capsys, "generate", language_model, *words)


def test_directories_that_hold_no_model(capsys, tmp_path):
    assert "no such preset directory" in refused(capsys, "evaluate", tmp_path / "absent")
    assert "metadata.json" in refused(capsys, "evaluate", tmp_path)
    assert "no such bundle" in refused(capsys, "verify", tmp_path / "absent")
    assert "manifest.json" in refused(capsys, "verify", tmp_path)


def test_a_damaged_preset(capsys, tmp_path, language_model):
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(language_model, damaged)
    (damaged / "model.weights.h5").write_bytes(b"nothing")

    assert "'model.weights.h5' is damaged" in refused(capsys, "generate", damaged, "--prompt", TEXT)


@pytest.mark.parametrize(
    "words",
    [
        ["export", "{model}", "--output", "{file}/out"],
        ["generate", "{model}", "--prompt", TEXT, "--output", "{file}/out.txt"],
        ["train", "nice", "--output", "{file}/out"],
        ["finetune", "{model}", "--dataset", "docstring_packages", "--output", "{file}/out"],
        ["demo", "--output", "{file}/out"],
        ["reproduce", "transformer_xl", "--output", "{file}/out"],
    ],
)
def test_unwritable_output_is_refused_before_any_work(words, capsys, tmp_path, language_model):
    file = tmp_path / "file"
    file.write_text("mine")

    line = refused(capsys, *(word.format(model=language_model, file=file) for word in words))

    assert "`directory` must not be a file or lie in one" in line
    assert file.read_text() == "mine"


def test_options_that_do_not_fit_the_model(capsys, flow, tmp_path):
    assert "--prompt" in refused(capsys, "generate", flow, "--prompt", TEXT)
    assert "data set" in refused(capsys, "evaluate", flow)
    assert "--weights" in refused(capsys, "benchmark", flow, "--weights", flow)


def test_a_failure_is_no_bad_input(capsys, monkeypatch, language_model, tmp_path):
    from zoo.export import GateError

    def fail(error):
        def export(*arguments, **keywords):
            raise error

        return export

    words = ["export", language_model, "--output", tmp_path / "out"]
    for error in (GateError("too bad"), OSError(28, "No space left on device")):
        monkeypatch.setattr(exporting, "_export", fail(error))
        code, out, err = run(capsys, *words)

        assert (code, out) == (1, "")
        assert err.splitlines()[-1].startswith("zoo: error: ")
        assert "Traceback" not in err


def test_debug_shows_the_trace(capsys, monkeypatch):
    monkeypatch.setenv("ZOO_DEBUG", "1")
    code, _, err = run(capsys, "info", "nise")

    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("zoo: error: ")


def test_an_interrupt_is_one_line(capsys, monkeypatch):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "list_models", interrupt)

    assert run(capsys, "list") == (130, "", "zoo: interrupted\n")


def test_a_missing_extra_is_named(capsys, monkeypatch, flow, tmp_path):
    installed = terminal.importlib.util.find_spec
    monkeypatch.setattr(
        terminal.importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("matplotlib", "tensorboard") else installed(name, *rest),
    )
    for words, extra in (
        (["generate", flow, "--output", tmp_path / "x.png"], "plot"),
        (["train", "nice", "--tensorboard", "--output", tmp_path / "run"], "tensorboard"),
        (["reproduce", "transformer_xl", "--output", tmp_path], "plot"),
    ):
        code, _, err = run(capsys, *words)

        assert code == 1
        assert f'pip install "method-zoo[{extra}]"' in err


# === generate, evaluate ===


def test_generated_text_is_the_model_s(capsys, language_model, tmp_path):
    expected = (
        TEXT + zoo.get("compressive_transformer", weights=language_model).generate(TEXT, 20, 0.7, 5, seed=3) + "\n"
    )
    words = ["--max-new-tokens", 20, "--temperature", 0.7, "--top-k", 5, "--seed", 3]

    code, out, _ = run(capsys, "generate", language_model, "--prompt", TEXT, *words)
    assert (code, out) == (0, expected)

    run(capsys, "generate", language_model, "--prompt", TEXT, *words, "--output", tmp_path / "new" / "text.txt")
    assert (tmp_path / "new" / "text.txt").read_text() == expected


def test_a_directory_may_be_named_without_a_separator(capsys, language_model, monkeypatch):
    monkeypatch.chdir(language_model.parent)

    assert run(capsys, "generate", language_model.name, "--prompt", TEXT, "--max-new-tokens", 1)[0] == 0
    assert not terminal.is_directory("nice")


def test_generated_images_are_the_model_s_samples(capsys, flow, tmp_path):
    from matplotlib import image

    code, out, _ = run(capsys, "generate", flow, "--seed", 1, "--output", tmp_path / "grid.png")
    model = zoo.get("nice", weights=flow)
    samples = model.run("sample", **model.dummy_inputs("sample", batch_size=64, seed=1))["image"]
    # 8 x 8 images of 4 x 4 pixels with a line around each, enlarged 4 times
    grid = image.imread(tmp_path / "grid.png")[::4, ::4, 0].reshape(8, 6, 8, 6)
    pixels = grid[:, 1:-1, :, 1:-1].transpose(0, 2, 1, 3).reshape(64, 16)

    assert (code, out) == (0, f"{tmp_path / 'grid.png'}\n")
    assert np.abs(pixels - np.clip(samples, 0, 1)).max() < 0.01


def test_an_encoder_decoder_writes_the_target_of_the_prompt(capsys, tmp_path):
    from zoo.sequence.encoder_decoder import SPECIAL_CHARACTERS
    from zoo.sequence.tokenizer import character_tokenizer

    sizes = dict(vocabulary_size=8, num_encoder_layers=1, num_decoder_layers=1, hidden_dim=8, num_heads=2)
    model = zoo.get("dynamic_conv", "iso_names", weights=None, **sizes, intermediate_dim=8, kernel_sizes=[3])
    model.set_assets({"tokenizer.json": character_tokenizer(SPECIAL_CHARACTERS + "abcde")})
    directory = model.save_to_preset(tmp_path / "translator")
    words = ["generate", directory, "--prompt", "abc", "--max-new-tokens", 4]

    assert run(capsys, *words)[:2] == (0, model.generate("abc", max_new_tokens=4) + "\n")
    assert "Received: ['temperature']" in refused(capsys, *words, "--temperature", 1)


def test_samples_that_are_no_images_are_refused(capsys):
    assert "generates neither text nor images" in refused(capsys, "generate", "variational_inference")


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    """A small preset of vae without recorded data."""
    model = zoo.get("vae", weights=None, image_shape=[4, 6, 1], latent_dim=2, hidden_dims=[8])
    return model.save_to_preset(tmp_path_factory.mktemp("presets") / "coder")


def write_picture(path, size, seed=0):
    """Writes a random PNG file, grey or in colours as `size` has channels; returns its pixels as floats."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, size).astype("uint8")
    Image.fromarray(pixels).save(path)
    return pixels.astype("float32") / 255


def strip_of(path, height, width):
    """Returns the pictures of a strip that was written: `(count, height, width)`."""
    from matplotlib import image

    grid = image.imread(path)[::4, ::4, 0]
    assert grid.shape[0] == height + 2
    return grid.reshape(height + 2, -1, width + 2)[1:-1, :, 1:-1].transpose(1, 0, 2)


def test_interpolation_between_two_pictures(capsys, coder, tmp_path):
    start, end = (write_picture(tmp_path / f"{seed}.png", (4, 6), seed)[None, ..., None] for seed in (1, 2))
    words = ["--interpolate", tmp_path / "1.png", tmp_path / "2.png", "--output", tmp_path / "strip.png"]
    code, out, err = run(capsys, "generate", coder, *words)

    assert (code, out) == (0, f"{tmp_path / 'strip.png'}\n"), err
    expected = zoo.get("vae", weights=coder).interpolate(start, end)[0, ..., 0]
    np.testing.assert_allclose(strip_of(tmp_path / "strip.png", 4, 6), expected, atol=0.01)


def test_interpolation_of_flat_images_begins_and_ends_at_the_pictures(capsys, flow, tmp_path):
    start, end = (write_picture(tmp_path / f"{seed}.png", (4, 4), seed) for seed in (1, 2))
    words = ["--interpolate", tmp_path / "1.png", tmp_path / "2.png", "--output", tmp_path / "strip.png"]
    assert run(capsys, "generate", flow, *words)[0] == 0
    strip = strip_of(tmp_path / "strip.png", 4, 4)

    assert len(strip) == 9
    np.testing.assert_allclose(strip[0], start, atol=0.01)
    np.testing.assert_allclose(strip[-1], end, atol=0.01)


def test_colours_become_grey_and_grey_becomes_colours(tmp_path):
    from zoo.cli.generation import _read

    colours = write_picture(tmp_path / "colours.png", (4, 6, 3))
    grey = write_picture(tmp_path / "grey.png", (4, 6))

    np.testing.assert_allclose(
        _read(tmp_path / "colours.png", (4, 6, 1))[..., 0], colours @ [0.299, 0.587, 0.114], atol=1e-6
    )
    np.testing.assert_allclose(_read(tmp_path / "colours.png", (4, 6, 3)), colours)
    np.testing.assert_allclose(_read(tmp_path / "grey.png", (4, 6, 1))[..., 0], grey, atol=1e-6)
    np.testing.assert_allclose(_read(tmp_path / "grey.png", (4, 6, 3)), np.stack([grey] * 3, axis=-1))


def test_pictures_that_do_not_fit(capsys, coder, language_model, tmp_path):
    write_picture(tmp_path / "good.png", (4, 6))
    write_picture(tmp_path / "large.png", (8, 6))
    write_picture(tmp_path / "clear.png", (4, 6, 4))
    (tmp_path / "text.png").write_text("no picture")
    before = sorted(tmp_path.iterdir())

    def line(model, name, *words):
        pictures = ["--interpolate", tmp_path / "good.png", tmp_path / name]
        return refused(capsys, "generate", model, *pictures, "--output", tmp_path / "strip.png", *words)

    assert "4 x 6 pixels" in line(coder, "large.png")
    assert "Received: 8 x 6 in" in line(coder, "large.png")
    assert "transparent" in line(coder, "clear.png")
    assert "takes PNG files" in line(coder, "text.png")
    assert "no such file" in line(coder, "absent.png")
    assert "a GAN, for one, has none" in line(language_model, "good.png")
    assert "--prompt" in line(coder, "good.png", "--prompt", TEXT)
    assert "--interpolate" in refused(capsys, "generate", coder, "--interpolate", tmp_path / "good.png")
    assert sorted(tmp_path.iterdir()) == before


def test_evaluate_puts_the_recorded_value_beside_the_new_one(capsys, language_model):
    code, out, _ = run(capsys, "evaluate", language_model, "--json")
    found = json.loads(out)
    entry = found["metrics"]["bits_per_character"]

    assert code == 0
    assert (found["dataset"], found["split"], entry["recorded"]) == ("austen", "test", 6.25)
    assert 5 < entry["value"] < 15


# === export, verify, benchmark, demo ===


def test_export_writes_a_bundle_and_prints_it(capsys, bundle, language_model):
    report = exporting.read_manifest(bundle)
    assert [artifact.label for artifact in report.artifacts] == ["litert/none"]
    assert (bundle / "compressive_transformer.tflite").is_file()

    line = refused(capsys, "export", language_model, "--format", "litert", "--output", bundle)
    assert "holds a bundle" in line


def test_verify_needs_the_weights_and_finds_an_altered_file(capsys, bundle, language_model, tmp_path):
    import shutil

    assert "--weights" in refused(capsys, "verify", bundle)

    code, out, _ = run(capsys, "verify", bundle, "--weights", language_model, "--json")
    assert code == 0
    assert [artifact["verified"] for artifact in json.loads(out)["artifacts"]] == [True]

    altered = tmp_path / "altered"
    shutil.copytree(bundle, altered)
    with (altered / "compressive_transformer.tflite").open("ab") as file:
        file.write(b"x")
    code, out, err = run(capsys, "verify", altered, "--weights", language_model)
    assert (code, out) == (1, "")
    assert "compressive_transformer.tflite was altered" in err


def test_benchmark_measures_anew(capsys, bundle, language_model):
    code, out, _ = run(capsys, "benchmark", bundle, "--weights", language_model, "--json")
    (artifact,) = json.loads(out)["artifacts"]

    assert code == 0
    assert set(artifact["latency_ms"]) == {"predict", "step", "decode", "compress"}
    assert min(artifact["latency_ms"].values()) > 0
    assert artifact["latency_ms"] != exporting.read_manifest(bundle).artifacts[0].latency_ms


def test_demo_replaces_only_an_earlier_demo(capsys, bundle, tmp_path):
    assert "earlier demo" in refused(capsys, "demo", "--output", bundle)

    (tmp_path / "notes.txt").write_text("mine")
    assert "earlier demo" in refused(capsys, "demo", "--output", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_demo_twice(capsys, language_model, monkeypatch, tmp_path):
    from zoo.cli import demo

    monkeypatch.setattr(demo, "load_model", lambda name: zoo.get(name, weights=language_model))
    for _ in range(2):
        code, out, _ = run(capsys, "demo", "--output", tmp_path / "demo")

        assert code == 0
        assert demo.PROMPT in out
    report = exporting.read_manifest(tmp_path / "demo")
    labels = [artifact.label for artifact in report.artifacts]
    assert labels == ["saved_model/none", "litert/none", "litert/dynamic_int8", "onnx/none", "onnx/dynamic_int8"]
    assert all(artifact.verified for artifact in report.artifacts)


# === compress ===


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Say how"),
        (["--quantize-aware", "8", "--budget-kb", "70"], "Received: both"),
        (["--budget-kb", "1"], "smallest reachable size"),
        (["--quantize-aware", "16"], "from 2 to 8"),
        (["--prune", "1.5"], "in [0, 1)"),
        (["--cluster", "1"], "`clusters`"),
    ],
)
def test_compressions_that_make_no_sense(words, message, capsys, tmp_path):
    assert message in refused(capsys, "compress", "nice", *words, "--output", tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_compress_needs_recorded_data(capsys, flow, tmp_path):
    assert "recorded data set" in refused(capsys, "compress", flow, "--prune", "0.5", "--output", tmp_path / "small")


def test_compress_shows_before_and_after(capsys, tmp_path):
    import keras

    words = ["compress", "nice", "--prune", "0.5", "--quantize-aware", "8", "--activations", "0"]
    words += ["--steps-per-epoch", "2", "--output", tmp_path / "small"]
    code, out, err = run(capsys, *words, "--json")

    assert code == 0, err
    rows = json.loads(out)
    before, after = (rows[when][0] for when in ("before", "after"))
    assert before["artifact"] == after["artifact"] == "litert/none"
    assert before["value"] == pytest.approx(zoo.info("nice").preset().metrics["test_nats"], abs=1e-3)
    assert after["gzip_bytes"] < before["gzip_bytes"]
    # Half of the products, of 8 bits by 32
    assert after["bit_operations"] == pytest.approx(before["bit_operations"] / 8, rel=0.01)
    assert exporting.read_manifest(tmp_path / "small" / "bundle").artifacts[0].verified
    loaded = keras.saving.load_model(tmp_path / "small" / "model.keras")
    assert [type(stage).__name__ for stage in loaded.stages] == ["PruningStage", "QuantizationStage"]
    assert "--overwrite" in refused(capsys, *words)


@pytest.mark.slow
def test_compress_learns_bits_within_a_budget(capsys, tmp_path):
    """From four bits, 49 KB, to three and two."""
    import keras
    from matplotlib import image

    from zoo.compression import LearnedBitwidthStage

    words = ["compress", "nice", "--budget-kb", "30", "--activation-budget-kb", "2", "--learning-rate-scale", "10"]
    words += ["--steps-per-epoch", "24", "--output", tmp_path / "small"]
    code, out, err = run(capsys, *words)

    assert code == 0, err
    for column in ("metric", "bytes", "gzip", "ms", "bit ops"):
        assert column in out
    assert "the budget is kept" in out
    loaded = keras.saving.load_model(tmp_path / "small" / "model.keras")
    stage = loaded.stage(LearnedBitwidthStage)
    assert 24 < stage.weight_kb() <= 30
    # The paper's factor for 70 KB, for a smaller network
    assert stage.penalty_weight == pytest.approx(0.1 * (70 / 30) ** 2)
    report = exporting.read_manifest(tmp_path / "small" / "bundle")
    packed = report.artifact("onnx", "bit_plan")
    assert packed.verified
    assert packed.size < 0.5 * report.artifact("onnx").size
    assert image.imread(tmp_path / "small" / "size.png").shape[2] == 4


# === finetune ===


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small preset of bert with the head of pretraining."""
    import keras

    from zoo.datasets import docstrings

    # Its weights must not depend on the tests before
    keras.utils.set_random_seed(0)
    sizes = dict(num_layers=1, hidden_dim=16, num_heads=2, intermediate_dim=16, sequence_length=8)
    model = zoo.get("bert", weights=None, vocabulary_size=4000, max_sequence_length=16, head="masked_lm", **sizes)
    model.set_assets({"tokenizer.json": docstrings.tokenizer_json()})
    return model.save_to_preset(tmp_path_factory.mktemp("presets") / "encoder")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A CSV file of texts, `good` where the word "mean" is in them."""
    words = [("mean", "axis", "good"), ("array", "axis", "bad")] * 24
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    path.write_text("body,kind\n" + "".join(f"the {a} of an {b},{kind}\n" for a, b, kind in words))
    return path


COLUMNS = ["--text-column", "body", "--label-column", "kind"]


def test_finetune_writes_a_preset_that_evaluates_and_exports(capsys, encoder, reviews, tmp_path):
    output = tmp_path / "run"
    words = ["finetune", "bert", "--weights", encoder, "--dataset", reviews, "--test", reviews, *COLUMNS]
    words += [
        "--epochs",
        10,
        "--batch-size",
        8,
        "--learning-rate",
        0.02,
        "--layer-decay",
        0.9,
        "--freeze",
        "embeddings",
    ]
    code, out, err = run(capsys, *words, "--output", output, "--json")

    assert code == 0, err
    found = json.loads(out)
    assert found["labels"] == ["bad", "good"] and found["metrics"]["test_accuracy"] == 1.0
    assert [line.split("  ")[0] for line in err.splitlines() if line.startswith("epoch")][-1] == "epoch 10/10"
    model = zoo.get("bert", weights=output / "preset")
    command = model.metadata.training["command"]
    assert command.startswith("zoo finetune bert --weights ") and "--freeze embeddings" in command
    assert cli.build_parser().parse_args(command.split()[1:]).layer_decay == 0.9
    assert {path.name for path in (output / "preset").iterdir()} >= {"tokenizer.json", "labels.json"}
    assert "resume it" in refused(capsys, *words, "--output", output)

    preset = output / "preset"
    assert "`--dataset` must name a file" in refused(capsys, "evaluate", preset)
    code, out, _ = run(capsys, "evaluate", preset, "--dataset", reviews, "--json")
    assert code == 0 and json.loads(out)["metrics"]["accuracy"] == {"value": 1.0, "recorded": 1.0}
    assert "fine-tuned preset" in refused(capsys, "compress", preset, "--prune", 0.5, "--output", tmp_path / "small")

    words = ["export", preset, "--format", "litert", "--quantization", "int8", "--skip-refused"]
    words += ["--calibration", reviews, "--output", tmp_path / "bundle"]
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert len(report["artifacts"]) + len(report["refused"]) == 1
    assert {path.name for path in (tmp_path / "bundle" / "assets").iterdir()} == {"tokenizer.json", "labels.json"}


def test_finetune_gives_a_tuned_model_of_other_classes_a_new_head(capsys, encoder, reviews, tmp_path):
    words = ["--text-column", "body", "--label-column", "kind", "--epochs", 1]
    assert run(capsys, "finetune", encoder, "--dataset", reviews, *words, "--output", tmp_path / "one")[0] == 0
    other = tmp_path / "other.csv"
    other.write_text(reviews.read_text().replace("good", "fine").replace("bad", "poor"))
    words = ["finetune", tmp_path / "one" / "preset", "--dataset", other, *words, "--output", tmp_path / "two"]
    code, out, err = run(capsys, *words)

    assert code == 0, err
    assert "validation_macro_f1: " in out and str(tmp_path / "two" / "preset") in out
    model = zoo.get("bert", weights=tmp_path / "two" / "preset")
    first = zoo.get("bert", weights=tmp_path / "one" / "preset").metadata
    assert model.labels == ["fine", "poor"]
    assert model.metadata.training["pretrained"]["weights_sha256"] == first.weights_sha256


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--dataset", "{reviews}"], "must be there; `text_column` (`--text-column`) names another. Received: ['body'"),
        (["--dataset", "absent.csv"], "no such file"),
        (["--dataset", "docstring_package"], "Did you mean 'docstring_packages'"),
        (["--dataset", "docstrings"], "labels for the head"),
        (["--dataset", "docstring_packages", "--examples", "9999"], "`examples` must be from 1 to 5328"),
        (["--dataset", "{reviews}", *COLUMNS, "--freeze", "encoder"], "`freeze` must be of ['embeddings', 'layer_0'"),
        (["--dataset", "{reviews}", *COLUMNS, "--mixout", "1"], "`mixout` must be in [0, 1)"),
        (["--dataset", "{reviews}", *COLUMNS, "--layer-decay", "2"], "--layer-decay"),
        (["--dataset", "{reviews}", *COLUMNS, "--sequence-length", "17"], "`sequence_length` must be from 1 to 16"),
        (["--dataset", "{reviews}", *COLUMNS, "--preset", "tiny"], "--preset"),
        (["--dataset", "{reviews}", *COLUMNS, "--weights", "{encoder}"], "a directory has its own weights. Received"),
        (["--dataset", "{reviews}", *COLUMNS, "--monitor", "val_loss"], "`monitor` must be one of ('loss', 'accuracy'"),
        ([], "--dataset"),
    ],
    ids=str,
)
def test_finetuning_that_makes_no_sense(words, part, capsys, encoder, reviews, tmp_path):
    words = [word.format(reviews=reviews, encoder=encoder) for word in words]
    assert part in refused(capsys, "finetune", encoder, *words, "--output", tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_models_without_a_backbone_are_not_fine_tuned(capsys, flow, reviews, tmp_path):
    words = ["--dataset", reviews, *COLUMNS, "--output", tmp_path / "run"]
    assert "A NICE has no backbone" in refused(capsys, "finetune", flow, *words)
    words = ["--preset", "digits", "--weights", flow, *words]
    assert "`--weights` takes the place of a preset" in refused(capsys, "finetune", "nice", *words)
    words = ["--preset", "base_uncased", *words[4:]]
    assert "pass the directory, or pass `--weights` DIRECTORY or hf://" in refused(capsys, "finetune", "bert", *words)
    line = refused(capsys, "finetune", "signal_propagation_pruning", *words[2:])
    assert "`model` must be one that reads texts, as the data are. Received: a SignalPropagation" in line


def test_a_data_set_belongs_to_models_tuned_on_files(capsys, language_model, reviews):
    assert "fine-tuned on files" in refused(capsys, "evaluate", language_model, "--dataset", reviews)


# === train, reproduce ===


@pytest.mark.parametrize(
    "words", [["--epochs", "0"], ["--seed", "-1"], ["--steps-per-epoch", "x"], ["--strategy", "all"]]
)
def test_bad_training_settings(words, capsys, tmp_path):
    assert words[0] in refused(capsys, "train", "transformer_xl", *words)


def test_train_passes_its_options_on(capsys, monkeypatch, tmp_path):
    from zoo.training import run as training

    seen = {}

    def train(recipe, output, callbacks, **options):
        seen.update(options, preset=recipe.preset, output=output, callbacks=[type(one).__name__ for one in callbacks])
        model = zoo.get("nice", weights=None, num_features=4, num_hidden_layers=1, hidden_dim=2)
        model.save_to_preset(output / "preset", metrics={"test_nats": 1.5})

    monkeypatch.setattr(training, "train", train)
    words = ["--epochs", 3, "--steps-per-epoch", 5, "--seed", 7, "--resume", "--mixed-precision", "--tensorboard"]
    code, out, _ = run(capsys, "train", "nice", *words, "--checkpoint-minutes", 0.5, "--output", tmp_path / "run")

    assert code == 0
    assert seen == dict(
        preset="digits", output=tmp_path / "run", dataset=None, epochs=3, steps_per_epoch=5, seed=7, resume=True,
        mixed_precision=True, strategy="none", checkpoint_minutes=0.5, callbacks=["TrainingProgress", "TensorBoard"],
    )  # fmt: skip
    assert "test_nats: 1.5" in out
    assert str(tmp_path / "run" / "preset") in out


def test_a_training_that_diverges_fails(capsys, monkeypatch, tmp_path):
    from zoo.training import run as training

    def train(*arguments, **options):
        raise RuntimeError("NaN or Inf loss encountered")

    monkeypatch.setattr(training, "train", train)
    code, _, err = run(capsys, "train", "nice", "--output", tmp_path / "run")

    assert code == 1
    assert "zoo: error: Training diverged" in err


@pytest.mark.slow
def test_train_and_evaluate_for_real(capsys, tmp_path):
    words = ["--dataset", "austen", "--epochs", 1, "--steps-per-epoch", 2, "--output", tmp_path / "run"]
    code, out, err = run(capsys, "train", "transformer_xl", *words)
    assert code == 0
    assert "epoch 1/1" in err
    trained = float(re.search(r"test_bits_per_character: ([\d.]+)", out)[1])

    assert "resume it" in refused(capsys, "train", "transformer_xl", *words)

    _, out, _ = run(capsys, "evaluate", tmp_path / "run" / "preset", "--json")
    entry = json.loads(out)["metrics"]["bits_per_character"]
    assert entry["recorded"] == pytest.approx(trained, abs=1e-4)
    assert entry["value"] == pytest.approx(entry["recorded"], abs=1e-5)


def test_progress_counts_epochs_of_a_resumed_training():
    import io

    import keras
    from rich.console import Console

    from zoo.training.progress import TrainingProgress

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    screen = Console(file=io.StringIO(), width=120)
    with TrainingProgress(screen) as progress:
        model.fit(
            np.ones((6, 2)), np.ones((6, 1)), batch_size=2, epochs=3, initial_epoch=1, verbose=0, callbacks=[progress]
        )
    lines = screen.file.getvalue().splitlines()

    assert [line.split("  ")[0] for line in lines] == ["epoch 2/3", "epoch 3/3"]
    assert all("loss" in line for line in lines)
    assert (progress._bar.tasks[0].completed, progress._bar.tasks[0].total) == (9, 9)


def test_reproduce_passes_only_what_was_asked(capsys, monkeypatch, tmp_path):
    from zoo.experiments import compressed_transformer, transformer_xl

    seen = []
    monkeypatch.setattr(
        transformer_xl, "reproduce", lambda directory, seeds=3, progress=None: seen.append((directory, seeds))
    )

    assert run(capsys, "reproduce", "transformer_xl", "--output", tmp_path)[0] == 0
    assert run(capsys, "reproduce", "transformer_xl", "--seeds", 2, "--output", tmp_path)[0] == 0
    assert seen == [(tmp_path, 3), (tmp_path, 2)]
    assert "--updates" in refused(capsys, "reproduce", "transformer_xl", "--updates", 2, "--output", tmp_path)

    monkeypatch.setattr(compressed_transformer, "reproduce", lambda directory, progress: seen.append("across methods"))
    assert run(capsys, "reproduce", "compressed_transformer", "--output", tmp_path)[0] == 0
    assert seen[-1] == "across methods"

    monkeypatch.delattr(transformer_xl, "reproduce")
    assert "No experiment" in refused(capsys, "reproduce", "transformer_xl", "--output", tmp_path)


def test_a_method_without_recipes(capsys, tmp_path):
    class Toy:
        pass

    zoo.register(Toy, name="toy", title="Toy", task="toys", presets={"base": {}})
    try:
        assert "without an experiment" in refused(capsys, "train", "toy", "--output", tmp_path / "run")
        assert "without an experiment" in refused(capsys, "reproduce", "toy", "--output", tmp_path)
    finally:
        zoo.unregister("toy")


def test_nothing_is_left_in_the_working_directory_by_refusals(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, "train", "transformer_xl", "--dataset", "austin")
    refused(capsys, "reproduce", "transformer_xll")
    refused(capsys, "export", "transformer_xl", "--preset", "nothing", "--output", "out")

    assert list(tmp_path.iterdir()) == []
