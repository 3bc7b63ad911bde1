import importlib.util
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo import cli
from zoo.export import ArtifactReport, ExportReport
from zoo.export.report import FileRecord, MetricChange, SignatureError

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
PAGES = [*GUIDES, *(ROOT / "docs").glob("*/*.md")]


def load_generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def blocks(path, language):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", path.read_text(), re.DOTALL | re.MULTILINE)


# === Generated pages ===


def test_the_generated_files_are_up_to_date(capsys):
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_check_names_what_is_stale_and_writes_nothing(capsys, monkeypatch, tmp_path):
    (tmp_path / "docs" / "methods").mkdir(parents=True)
    (tmp_path / "README.md").write_text(f"# Zoo\n{generate.BEGIN}\nold\n{generate.END}\nrest\n")
    (tmp_path / "docs" / "methods" / "gone.md").write_text("a method that was removed\n")
    monkeypatch.setattr(generate, "ROOT", tmp_path)

    assert generate.main(["--check"]) == 1
    assert {line.split(": ")[1] for line in capsys.readouterr().out.splitlines()} >= {
        "README.md",
        "docs/methods/gone.md",
    }
    assert "old" in (tmp_path / "README.md").read_text()

    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("# Zoo\n") and readme.endswith("\nrest\n") and "old" not in readme
    assert all(f"docs/methods/{name}.md" in readme for name in zoo.list_models())
    assert not (tmp_path / "docs" / "methods" / "gone.md").exists()


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="markers"):
        generate.with_table("# Zoo\n", [])


def test_a_method_page_shows_the_experiment(tmp_path):
    results = {
        "method": "nice",
        "claim": "It works.",
        "verdict": "It does not.",
        "command": "zoo reproduce nice",
        "settings": {"seeds": 2, "updates": 2000},
        "versions": {},
        "nats": {"one|arm": {"mean": 1.23456, "std": 0.5, "seeds": 2}},
        "gain": {"mean": 0.25, "std": 0.125},
        "curves": {"arm": {"0": 1.5, "64": 2.5}},
        "per_seed": {"arm": [1.0, 2.0]},
        "one_number": 12345,
    }
    (tmp_path / "nice.json").write_text(json.dumps(results))
    page = generate.method_page(zoo.info("nice"), tmp_path, None)

    for part in (
        "Claim: It works.",
        "Verdict: It does not.",
        "| one\\|arm | 1.235 ± 0.5 (2 seeds) |",
        "### Gain\n\n0.25 ± 0.12",
        "|  | 0 | 64 |\n| --- | --- | --- |\n| arm | 1.5 | 2.5 |",
        "| arm | 1, 2 |",
        "12,345",
        "Repeat it: `zoo reproduce nice` (seeds 2, updates 2,000).",
    ):
        assert part in page
    assert "![" not in page, "there is no figure"


def test_the_export_matrix_shows_what_passed_and_what_was_refused(tmp_path):
    artifact = ArtifactReport(
        "litert",
        "dynamic_int8",
        {"nice.tflite": FileRecord("0" * 64, 123_456)},
        {"predict": "nice.tflite"},
        errors={"predict": SignatureError(0.5, 0.25, "y", (0,), 1.0, 1.5)},
        metric=MetricChange("nats", 10.0, 9.5, 1.0),
        latency_ms={"predict": 0.125},
        verified=True,
    )
    spec = {"shape": ["batch", 3], "dtype": "float32", "description": "Numbers."}
    refused = [{"format": "onnx", "quantization": "int8", "reason": "too bad"}]
    signatures = {"predict": {"inputs": {"x": spec}, "outputs": {"y": spec}}}
    report = ExportReport("nice", signatures, [artifact], versions={"onnx": "1"}, refused=refused)
    report = ExportReport.from_dict(json.loads(json.dumps(report.to_dict())))
    matrix = generate.export_page({"nice": report, "other": None})

    assert "| litert | dynamic_int8 | 0.12 MB | 2.5e-01 | nats 9.5 (10) | predict 0.125 |" in matrix
    assert "| onnx | int8 | refused |" in matrix
    assert "- onnx/int8: too bad" in matrix
    assert "No export is recorded for `other`." in matrix
    assert "| predict | input | `x` | float32 (batch, 3) | Numbers. |" in generate.method_page(
        zoo.info("nice"), tmp_path, report
    )


def test_a_method_page_shows_shipped_weights(tmp_path):
    import dataclasses

    model = zoo.get("nice", weights=None, num_features=4, num_hidden_layers=1, hidden_dim=2)
    training = {"command": "zoo train nice --seed 0", "steps": 1500}
    directory = model.save_to_preset(tmp_path / "digits", metrics={"test_nats": 12.34567}, training=training)
    method = zoo.info("nice")
    trained = dataclasses.replace(method.presets["digits"], weights=directory)
    page = generate.method_page(dataclasses.replace(method, presets={"digits": trained}), tmp_path, None)

    assert "| test nats | 12.3457 |" in page
    assert "`zoo train nice --seed 0`" in page
    assert model.metadata.weights_sha256 in page
    assert 'zoo.get("nice")' in page


# === What the guides say ===


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), target


def commands(path):
    """Yields the words after `zoo` of every command in a page."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("#")[0].split("&&"):
                words = shlex.split(part.split(">")[0])
                if words[:1] == ["zoo"]:
                    yield words[1:]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_exists_with_its_options(path):
    for words in commands(path):
        assert callable(cli.build_parser().parse_args(words).run)


def test_commands_are_found_at_all():
    assert ["demo"] in commands(ROOT / "README.md")
    assert any(words[0] == "export" and "--quantization" in words for words in commands(ROOT / "BUILD.md"))


# === Snippets ===


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A directory with `bundle/` of a small random model, and the model."""
    from zoo.experiments import language_models as lm

    sizes = dict(
        num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=64, window_length=8, memory_length=8,
        compressed_memory_length=4, initializer_stddev=0.3,
    )  # fmt: skip
    model = zoo.get("compressive_transformer", weights=None, **sizes, **lm.vocabulary("austen"))
    lm.prepare(model, "austen")
    # Of untrained weights the likeliest token is the one just read, since input and output embeddings are shared
    rng = np.random.default_rng(0)
    for weight in model.trainable_variables:
        if weight.path.endswith("gamma"):
            weight.assign(rng.normal(size=weight.shape))
    directory = tmp_path_factory.mktemp("snippets")
    zoo.export.export_model(model, directory / "bundle", name="compressive_transformer", benchmark=False)
    return directory, model


@pytest.mark.slow
def test_export_guide(bundle, monkeypatch):
    directory, model = bundle
    monkeypatch.chdir(directory)
    first, *snippets = blocks(ROOT / "docs" / "export.md", "python")
    assert "zoo.get" in first
    *calls, by_token, onnx_calls = snippets
    logits = [_run(snippet)["logits"] for snippet in calls]
    assert [value.shape for value in logits] == [(1, 3, model.vocabulary_size)] * 3

    prompt = "It is a truth universally acknowledged, that "
    expected = model.generate(prompt, max_new_tokens=40, temperature=0)
    assert len(set(expected)) > 5, "a text of one character would show nothing"
    assert _run(by_token)["text"] == expected
    before, after = by_token.split("\ndef read")
    assert _run(f"{before}\n{onnx_calls}\ndef read{after}")["text"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/training.md", "docs/checkpoints.md", "docs/finetuning.md"])
def test_python_of_the_guides_runs(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    preset = "runs/austen/preset"
    for snippet in blocks(ROOT / name, "python"):
        if preset in snippet:
            zoo.get("transformer_xl").save_to_preset(preset)
        _run(snippet)


@pytest.mark.parametrize("name", [name for name in zoo.list_models() if zoo.info(name).example])
def test_the_example_of_a_method_runs(name):
    exec(compile(zoo.info(name).example, "example", "exec"), {"model": zoo.get(name)})


def _run(snippet):
    names = {}
    exec(compile(snippet, "snippet", "exec"), names)
    return names
