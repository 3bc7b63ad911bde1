"""Fine-tuning: heads, layer groups, rates by depth, own data, metrics, resuming, exports."""

import csv
import dataclasses
import json
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import f1_score

import zoo
from zoo.compression.image_classifier import ImageClassifier
from zoo.datasets import docstring_packages, docstrings, load_arrays
from zoo.language.tasks import (
    Question,
    answer_f1,
    answer_tokens,
    answer_words,
    best_answer,
    example_inputs,
    span_f1,
    spans,
)
from zoo.sequence.tokenizer import load_tokenizer
from zoo.training import finetuning
from zoo.training.checkpoint import TrainingCheckpoint
from zoo.training.metrics import LabelAccuracy, MacroF1
from zoo.training.optimizers import LayerwiseAdamW, decay_kernels_only
from zoo.training.schedules import WarmupLinearDecay
from zoo.training.task import Task, hold_out, read_task

SIZES = dict(
    vocabulary_size=4000, num_layers=2, hidden_dim=16, num_heads=2, intermediate_dim=16, max_sequence_length=32,
    sequence_length=16, mask_selection_length=3, initializer_stddev=0.2,
)  # fmt: skip
WORDS = ("mean", "array", "matrix", "function")


def encoder(method="bert", **changes):
    keras.utils.set_random_seed(1)
    model = zoo.get(method, weights=None, **{**SIZES, **changes})
    model.set_assets({"tokenizer.json": docstrings.tokenizer_json()})
    return model


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A preset directory of a small BERT with the head of pretraining."""
    model = encoder(head="masked_lm", sentence_loss="nsp", num_layers=1, dropout=0.1, attention_dropout=0.1)
    return model.save_to_preset(tmp_path_factory.mktemp("presets") / "bert", licence="MIT")


def classifier(pretrained, **changes):
    keras.utils.set_random_seed(2)
    return zoo.get("bert", weights=pretrained, **{"head": "classification", "num_classes": 2, **changes})


def write_csv(path, rows, header=("text", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentences(count, seed=0):
    """Texts that are `yes` where the word "mean" is among them."""
    rng = np.random.default_rng(seed)
    rows = [rng.choice(WORDS[1:], 4).tolist() for _ in range(count)]
    for row in rows[::2]:
        row[rng.integers(4)] = "mean"
    return [(" ".join(row), "yes" if "mean" in row else "no") for row in rows]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {
        split: write_csv(folder / f"{split}.csv", sentences(count, seed))
        for seed, (split, count) in enumerate([("train", 64), ("validation", 32), ("test", 32)])
    }


@pytest.fixture(scope="module")
def task(files):
    return read_task(files["train"], validation=files["validation"], test=files["test"])


# === Heads ===


def test_a_preset_gets_another_head_and_says_that_it_is_random(pretrained, caplog):
    base = zoo.get("bert", weights=pretrained)
    model = classifier(pretrained, num_classes=4)

    assert (model.head, model.num_classes, base.head) == ("classification", 4, "masked_lm")
    assert "The head of Bert is new and starts at random" in caplog.text
    inputs = model.text_inputs(["the mean of an array"])
    np.testing.assert_array_equal(base.backbone(inputs)["pooled_output"], model.backbone(inputs)["pooled_output"])
    assert model.assets == base.assets
    assert model.metadata is None and model.pretrained.weights_sha256 == base.metadata.weights_sha256
    assert zoo.get("bert", weights=pretrained, head=None).head_layer is None


def test_a_head_that_is_there_is_kept(pretrained, tmp_path, caplog):
    model = classifier(pretrained, num_classes=3)
    model.labels = ["a", "b", "c"]
    model.save_to_preset(tmp_path / "tuned")
    caplog.clear()
    again = zoo.get("bert", weights=tmp_path / "tuned", head="classification", num_classes=3)

    assert not caplog.records and again.labels == ["a", "b", "c"] and again.metadata is not None
    for ours, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = zoo.get("bert", weights=tmp_path / "tuned", head="classification", num_classes=2)
    assert caplog.records and other.labels is None


def test_heads_without_a_backbone_are_refused(pretrained, caplog):
    with pytest.raises(ValueError, match=r"A NICE has no backbone to put a head on\. Received: head='classification'"):
        zoo.get("nice", head="classification", num_classes=4)
    with pytest.raises(ValueError, match="no backbone"):
        zoo.get("nice", weights=None, head="classification")
    with pytest.raises(ValueError, match="no backbone"):
        zoo.get("nice", weights=None).with_head("classification")
    with pytest.raises(ValueError, match="a backbone to be fine-tuned"):
        zoo.get("nice", weights=None).layer_groups()
    with pytest.raises(ValueError, match="`head` must be None or one of"):
        zoo.get("bert", weights=pretrained, head="translation")
    assert not caplog.records
    with pytest.raises(ValueError, match="must fit the trained weights"):
        zoo.get("bert", weights=pretrained, head="classification", hidden_dim=32)


IMAGES = ["mixed_precision_dnn", "real_to_binary", "signal_propagation_pruning"]


@pytest.mark.parametrize("name", IMAGES)
def test_image_classifiers_get_another_head(name):
    base, model = zoo.get(name), zoo.get(name, head="classification", num_classes=4)

    assert model.dummy_inputs("predict")["image"].shape == base.dummy_inputs("predict")["image"].shape
    assert model.run("predict", **model.dummy_inputs("predict"))["logits"].shape == (2, 4)
    own = {id(variable) for variable in base.head_variables()}
    kept = [variable for variable in base.weights if id(variable) not in own]
    new = {id(variable) for variable in model.head_variables()}
    found = [variable for variable in model.weights if id(variable) not in new]
    assert len(kept) == len(found) == len(base.weights) - len(own)
    for ours, theirs in zip(kept, found, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # Of as many classes, and new nevertheless
    again = base.with_head()
    assert again.num_classes == base.num_classes
    (ours, theirs) = (each.layer_groups()["head"][0].kernel.numpy() for each in (base, again))
    assert np.abs(ours - theirs).max() > 1e-3
    if name == "signal_propagation_pruning":
        paths = [each.layer_groups()["head"][0].kernel.path for each in (base, again)]
        assert not base.masks[paths[0]].all() and again.masks[paths[1]].all()
    with pytest.raises(ValueError, match=r"`head` must be 'classification'"):
        base.with_head("question_answering")
    with pytest.raises(ValueError, match="must be 'classification'"):
        zoo.get(name, weights=None, head="question_answering")
    assert zoo.get(name, head="classification").metadata is not None


def test_backbones_of_images_keep_their_sizes():
    with pytest.raises(ValueError, match="weights stay as they are"):
        zoo.get("mixed_precision_dnn").with_head("classification", width=8)


# === Layer groups ===


def test_groups_of_layers_hold_every_weight():
    for model in (encoder(head="classification"), encoder("albert", embedding_dim=8, head="classification")):
        groups = model.layer_groups()
        found = {id(v) for group in groups.values() for layer in group for v in layer.weights}
        assert found == {id(variable) for variable in model.weights}
    assert list(groups) == ["embeddings", "layer_0", "pooler", "head"]
    assert len(groups["embeddings"]) == 2
    image = zoo.get("mixed_precision_dnn")
    groups = image.layer_groups()
    assert list(groups)[-2:] == ["layer_6", "head"]
    assert [type(layer).__name__ for layer in groups["layer_0"]] == ["Conv2D", "BatchNormalization"]


def test_rates_fall_from_the_head_to_the_embeddings():
    model = encoder(head="classification")
    variables = model.trainable_variables
    factors = dict(zip([v.path for v in variables], finetuning.rate_multipliers(model, variables, 0.5), strict=True))
    expected = {"embedding/": 0.125, "layer_0/": 0.25, "layer_1/": 0.5, "pooler/": 1.0, "head/": 1.0}
    for part, factor in expected.items():
        found = {value for path, value in factors.items() if part in path}
        assert found == {factor}, part
    assert len(factors) == len(variables)


def test_shared_parts_have_the_rate_of_the_last_layer_that_has_them():
    model = encoder("albert", embedding_dim=8, head="classification", share="attention")
    variables = model.trainable_variables
    factors = dict(zip([v.path for v in variables], finetuning.rate_multipliers(model, variables, 0.5), strict=True))
    assert {factors[path] for path in factors if "layer_0/attention/" in path} == {0.5}
    assert {factors[path] for path in factors if "layer_0/feed_forward/" in path} == {0.25}


@pytest.mark.parametrize(
    ("freeze", "groups"),
    [
        (["embeddings"], ["embeddings"]),
        (["layers:1", "pooler"], ["layer_0", "pooler"]),
        (["layers:2"], ["layer_0", "layer_1"]),
        (["backbone"], ["embeddings", "layer_0", "layer_1", "pooler"]),
        ([], []),
    ],
    ids=str,
)
def test_frozen_groups(freeze, groups):
    assert finetuning.frozen_groups(encoder(head="classification"), freeze) == groups


@pytest.mark.parametrize("freeze", [["layers:3"], ["layers:0"], ["encoder"], ["layer_2"], "embeddings"], ids=str)
def test_unknown_groups_are_refused(freeze):
    with pytest.raises(ValueError, match=r"`freeze` must be .*'embeddings', 'layer_0', 'layer_1'.*Received"):
        finetuning.frozen_groups(encoder(head="classification"), freeze)


# === Optimiser ===


def step(optimizer, weights, gradients, compiled=False):
    variables = [keras.Variable(np.array(weight, "float32"), name=name) for name, weight in weights]
    optimizer.build(variables)

    def update():
        optimizer.apply([tf.constant(gradient, "float32") for gradient in gradients], variables)

    update = tf.function(update, jit_compile=True) if compiled else update
    for _ in range(3):
        update()
    return [variable.numpy() for variable in variables]


WEIGHTS = [("kernel", [1.0, -2.0]), ("kernel", [3.0, 4.0]), ("bias", [5.0, 6.0])]
GRADIENTS = [[0.1, 0.2], [0.3, -0.4], [0.5, 0.6]]


@pytest.mark.parametrize("compiled", [False, True])
def test_each_variable_moves_as_with_a_rate_of_its_own(compiled):
    factors = [1.0, 0.5, 0.0]
    schedule = WarmupLinearDecay(0.1, 1, 10)
    found = step(
        decay_kernels_only(LayerwiseAdamW(schedule, factors, weight_decay=0.2)), WEIGHTS, GRADIENTS, compiled=compiled
    )
    for factor, weight, gradient, value in zip(factors, WEIGHTS, GRADIENTS, found, strict=True):
        rate = WarmupLinearDecay(0.1 * factor, 1, 10) if factor else 0.0
        alone = decay_kernels_only(keras.optimizers.AdamW(rate, weight_decay=0.2))
        np.testing.assert_allclose(value, step(alone, [weight], [gradient])[0], rtol=1e-5)


def test_without_factors_it_is_adamw():
    ours = step(LayerwiseAdamW(0.1, weight_decay=0.2), WEIGHTS, GRADIENTS)
    theirs = step(keras.optimizers.AdamW(0.1, weight_decay=0.2), WEIGHTS, GRADIENTS)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_optimiser_round_trips_and_refuses_what_does_not_fit():
    optimizer = LayerwiseAdamW(1e-3, [1, 0.5])
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config() and again.multipliers == [1.0, 0.5]
    with pytest.raises(ValueError, match=r"one for each of 3 variables\. Received: 2"):
        step(optimizer, WEIGHTS, GRADIENTS)
    with pytest.raises(ValueError, match="`multipliers` must be None or numbers that are not negative"):
        LayerwiseAdamW(1e-3, [-1.0])


# === Metrics ===


def test_accuracy_and_macro_f1_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(-1, 3, (7, 5)), rng.normal(size=(7, 5, 4)).astype("float32")
    kept = labels >= 0
    predicted = logits.argmax(-1)
    accuracy, macro = LabelAccuracy(), MacroF1()
    for rows in (slice(0, 4), slice(4, None)):
        accuracy.update_state(labels[rows], logits[rows])
        macro.update_state(labels[rows], logits[rows])
    expected = f1_score(labels[kept], predicted[kept], labels=range(4), average="macro", zero_division=0)
    assert float(macro.result()) == pytest.approx(expected, abs=1e-5)
    assert float(accuracy.result()) == pytest.approx((predicted == labels)[kept].mean(), abs=1e-6)
    again = keras.metrics.deserialize(keras.metrics.serialize(macro))
    assert again.get_config() == macro.get_config()


def test_equal_logits_are_one_class():
    metric = MacroF1()
    metric.update_state(np.array([0, 1]), np.zeros((2, 2), "float32"))
    assert float(metric.result()) == pytest.approx(1 / 3, abs=1e-5)


def test_spans_are_conll_s():
    labels = ["B-a", "I-a", "I-b", "O", "I-a", "B-a", "B-b"]
    assert spans(labels) == {(0, 2, "a"), (2, 3, "b"), (4, 5, "a"), (5, 6, "a"), (6, 7, "b")}
    assert spans(["O"]) == set()
    expected, predicted = [["B-a", "I-a", "O", "B-b"]], [["B-a", "O", "O", "B-b"]]
    assert span_f1(expected, predicted) == 0.5
    assert span_f1(expected, expected) == 1.0 and span_f1([["O"]], [["O"]]) == 0.0


def test_answers_are_compared_by_their_words():
    assert answer_words("The  Eiffel Tower, of a city!") == ["eiffel", "tower", "of", "city"]
    assert answer_f1("the eiffel tower", "Eiffel tower in Paris") == pytest.approx(2 * 2 / (2 + 4))
    assert answer_f1("the", "a") == 1.0 and answer_f1("", "word") == 0.0


# === Files ===


def test_csv_and_jsonl_of_the_same_rows_are_the_same_task(tmp_path, pretrained):
    rows = [('with, a "comma"', "second\nline", "b"), ("ünïcode", "y", "a"), ("z", "w", "b")]
    header = ("body", "more", "kind")
    one = write_csv(tmp_path / "a.csv", rows, header)
    two = write_jsonl(tmp_path / "a.jsonl", [dict(zip(header, row, strict=True)) for row in rows])
    columns = dict(text_column="body", pair_column="more", label_column="kind")
    tasks = [read_task(path, validation=path, **columns) for path in (one, two)]

    assert tasks[0].splits["train"] == tasks[1].splits["train"]
    assert tasks[0].labels == ["a", "b"] and tasks[0].class_counts() == {"a": 1, "b": 2}
    model = classifier(pretrained)
    inputs, labels = tasks[0].encode(model, "train")
    expected = model.text_inputs([row[0] for row in rows], [row[1] for row in rows], truncate=True)
    for name, array in expected.items():
        np.testing.assert_array_equal(inputs[name], array)
    assert labels.tolist() == [1, 0, 1]
    assert tasks[0].options == {"head": "classification", **columns}
    assert tasks[0].record["files"]["train"] == {
        "name": "a.csv",
        "sha256": zoo.checkpoints.sha256(one),
        "examples": 3,
    }


def test_a_second_text_is_found_by_its_usual_name_and_numbers_sort_as_numbers(tmp_path):
    rows = [{"text": f"t{i}", "text_pair": f"p{i}", "label": label} for i, label in enumerate([10, 9, 10, 2])]
    task = read_task(write_jsonl(tmp_path / "a.jsonl", rows), validation=tmp_path / "a.jsonl")
    assert task.labels == ["2", "9", "10"]
    assert task.splits["train"].pairs == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        (
            "a.csv",
            "body,label\nx,y\n",
            r"A column 'text' must be there; `text_column` \(`--text-column`\) names another\. "
            r"Received: \['body', 'label'\] in line 2",
        ),
        ("a.csv", "text\nx\n", r"A column 'label' must be there; `label_column` \(`--label-column`\) names another"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": "y"}\n', r"'label' must be there\. Received: .*in line 2"),
        ("a.csv", "text,label\nx,y\n ,y\n", r"'text' must be a text that is not empty\. Received: ' ' in line 3"),
        ("a.csv", "text,label\nx,\n", "'label' must be a text or a whole number"),
        ("a.csv", "text,label\nx,y,z\n", "Every line must have 2 values.*Received: 3 in line 2"),
        ("a.csv", 'text,label\n"x" y,z\n', "valid CSV.*line 2"),
        ("a.csv", "text,text\nx,y\n", "must name each column once"),
        ("a.csv", "text,label\n", "at least one"),
        ("a.csv", "", "at least one"),
        ("a.csv", "text,label\nx,a\ny,a\n", r"at least two classes\. Received: \['a'\]"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": \n', r"valid JSON: .*Received: line 2 of 'a\.jsonl'"),
        ("a.jsonl", "[1]\n", "must be a JSON object. Received: list in line 1"),
        ("a.jsonl", '{"text": 3, "label": "a"}\n', "'text' must be a text that is not empty. Received: 3"),
        ("a.jsonl", '{"text": "x", "label": 1.5}\n', "'label' must be a text or a whole number. Received: 1.5"),
        ("a.jsonl", '{"text": "x", "label": true}\n', "'label' must be a text or a whole number. Received: True"),
        ("a.txt", "x", r"must end in \.csv or \.jsonl"),
    ],
)
def test_malformed_files_are_refused(name, content, match, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=match):
        read_task(tmp_path / name, validation=tmp_path / name)


def test_files_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\n\xff,y\n")
    with pytest.raises(ValueError, match="must be UTF-8"):
        read_task(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_task(tmp_path / "absent.csv")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_training_does_not_see_is_refused(split, files, tmp_path):
    other = write_csv(tmp_path / "other.csv", [("x", "yes"), ("y", "maybe")])
    splits = {"validation": files["validation"], "test": files["test"], split: other}
    with pytest.raises(ValueError, match=rf"Every class must be in the train split.*\['maybe'\] in the {split} split"):
        read_task(files["train"], **splits)


@pytest.mark.parametrize(
    ("dataset", "options", "match"),
    [
        ("docstring_package", {}, "Did you mean 'docstring_packages'"),
        ("docstrings", {}, "must be one with labels for the head 'classification'"),
        ("docstring_packages", {"head": "question_answering"}, "labels for the head 'question_answering'"),
        ("docstring_packages", {"head": "masked_lm"}, "`head` must be one of"),
        ("docstring_packages", {"test": "a.csv"}, "None for 'docstring_packages', which has such splits"),
        ("docstring_packages", {"examples": 0}, "`examples` must be from 1 to 5328"),
        ("mnist_sample", {"examples": 5}, "Received: option='examples'"),
        ("a.csv", {"examples": 5}, "`examples` must be None for a file"),
    ],
    ids=str,
)
def test_data_sets_that_do_not_fit_are_refused(dataset, options, match):
    with pytest.raises(ValueError, match=match):
        read_task(dataset, **options)


def test_a_tenth_of_each_class_is_held_out_where_there_is_no_validation(tmp_path, caplog):
    rows = [(f"text {i}", "rare" if i < 20 else "often") for i in range(120)]
    task = read_task(write_csv(tmp_path / "a.csv", rows))
    held = task.splits["validation"]

    assert "12 of 120 examples are held out" in caplog.text and task.record["held_out"] == 12
    assert sorted(held.labels).count("rare") == 2 and len(held.labels) == 12
    assert sorted([*task.splits["train"].texts, *held.texts]) == sorted(row[0] for row in rows)
    assert read_task(tmp_path / "a.csv").splits == task.splits
    with pytest.raises(ValueError, match="`validation` must be a file, for too few"):
        hold_out(4, None)


def test_fewer_train_examples_are_among_the_more():
    few, more = ({text for text in load_arrays("docstring_packages", "train", examples=n)["text"]} for n in (100, 300))
    assert len(few) == 100 and few < more
    assert set(load_arrays("docstring_packages", "test", examples=5)["label"]) == set(docstring_packages.CLASSES)


# === Tokens and answers ===


def test_labels_stand_at_the_first_piece_of_each_word(tmp_path, pretrained):
    rows = [
        {"tokens": ["Mean", "unbelievability", "of", "x."], "labels": ["B-a", "I-a", "O", "B-b"]},
        {"tokens": ["axis"] * 20, "labels": ["O"] * 20},
    ]
    task = read_task(write_jsonl(tmp_path / "a.jsonl", rows), "token_classification", validation=tmp_path / "a.jsonl")
    model = classifier(pretrained, head="token_classification", num_classes=4)
    inputs, targets = task.encode(model, "train")

    assert task.labels == ["B-a", "B-b", "I-a", "O"] and task.has_spans and task.monitor == "span_f1"
    pieces = [model.tokenizer.id_to_token(int(token)) for token in inputs["token_ids"][0]]
    starts = [piece for piece, target in zip(pieces, targets[0], strict=True) if target >= 0]
    assert [piece.removeprefix("##") for piece in starts] == ["mean", starts[1], "of", "x"]
    assert targets[0][targets[0] >= 0].tolist() == [0, 2, 3, 1]
    assert pieces.index(starts[1]) == 2 and targets[0][3] == -1, "the long word has further pieces"
    # Two of sixteen places are for special tokens
    assert (targets[1] == 3).sum() == 14 and targets[1][0] == targets[1][15] == -1
    with pytest.raises(ValueError, match=r"one for each of 2 tokens\. Received: 1 in line 1"):
        read_task(write_jsonl(tmp_path / "b.jsonl", [{"tokens": ["a", "b"], "labels": ["O"]}]), "token_classification")
    with pytest.raises(ValueError, match="'tokens' must be a list of texts"):
        read_task(write_jsonl(tmp_path / "b.jsonl", [{"tokens": [""], "labels": ["O"]}]), "token_classification")


def question(words, context="The Mean of all values, and an axis.", **changes):
    example = {"question": "What is it?", "context": context, "answer_start": context.find(words), "answer": words}
    return {**example, **changes}


def test_answers_are_found_through_the_offsets(tmp_path, pretrained):
    context = "The Mean of all values, and an axis of many other words that do not fit."
    answers = ["Mean of all", "values", "The", "fit"]
    path = write_jsonl(tmp_path / "a.jsonl", [question(answer, context) for answer in answers])
    task = read_task(path, "question_answering", validation=path)
    model = classifier(pretrained, head="question_answering")
    inputs, targets = task.encode(model, "train")

    found = []
    for row, (first, last) in enumerate(zip(targets["start_positions"], targets["end_positions"], strict=True)):
        found.append(model.tokenizer.decode(inputs["token_ids"][row, first : last + 1].tolist()))
        assert inputs["segment_ids"][row, first : last + 1].all()
    assert set(found) == {answer.lower() for answer in answers}, "in a later window too"
    _, held_out = task.encode(model, "validation")
    whole = held_out["start_positions"] >= 0
    assert whole.sum() == len(found) < len(whole) and (held_out["end_positions"][~whole] == -1).all()


def test_an_answer_that_no_window_holds_is_left_out(tmp_path, pretrained, caplog):
    context = "The Mean of all values, and an axis of many other words that do not fit."
    rows = [question("Mean of all", context), question(context, context)]
    task = read_task(write_jsonl(tmp_path / "a.jsonl", rows), "question_answering", validation=tmp_path / "a.jsonl")
    task.encode(classifier(pretrained, head="question_answering"), "train")
    assert "1 of 2 train examples have an answer that no window holds" in caplog.text


def test_the_best_window_answers(tmp_path, pretrained):
    context = "The Mean of all values, and an axis of many other words that do not fit."
    path = write_jsonl(tmp_path / "a.jsonl", [question("fit", context), question("Mean", context)])
    task = read_task(path, "question_answering", validation=path)
    model = classifier(pretrained, head="question_answering")
    fit = model.tokenizer.token_to_id("fit")

    def run(name, inputs):
        logits = 5.0 * (inputs["token_ids"] == fit)
        return {"start_logits": logits, "end_logits": logits}

    assert task.scores(model, run, "validation") == {"exact_match": 0.5, "f1": 0.5}


def test_the_best_answer_is_the_best_pair_of_places(pretrained):
    tokenizer = load_tokenizer(docstrings.tokenizer_json())
    context = "The mean of all values along an axis"
    encoding = tokenizer.encode("What is it?", context)
    rng = np.random.default_rng(0)
    places = [place for place, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
    for _ in range(20):
        start, end = rng.normal(size=(2, len(encoding.ids)))
        pairs = [(start[a] + end[b], a, b) for a in places for b in places if a <= b]
        _, a, b = max(pairs)
        expected = context[encoding.offsets[a][0] : encoding.offsets[b][1]]
        assert best_answer(encoding, context, start, end) == (pytest.approx(start[a] + end[b]), expected)
    example = Question("What is it?", context, 4, "mean")
    first, last = answer_tokens(encoding, example)
    assert first == last and encoding.offsets[first] == (4, 8)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(answer_start=5), "'answer' must stand in 'context'.*Received: answer_start=5 of 'Mean' in line 1"),
        (dict(answer_start="4"), "answer_start='4'"),
        (dict(answer=""), "'answer' must be a text"),
        (dict(question=" "), "'question' must be a text"),
    ],
    ids=str,
)
def test_bad_answers_are_refused(changes, match, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [question("Mean", **changes)])
    with pytest.raises(ValueError, match=match):
        read_task(path, "question_answering")


def test_a_question_without_room_is_refused(tmp_path, pretrained):
    path = write_jsonl(tmp_path / "a.jsonl", [question("Mean", question="mean " * 30)])
    task = read_task(path, "question_answering", validation=path)
    with pytest.raises(ValueError, match="Every question must leave room for its context in 16 tokens"):
        task.encode(classifier(pretrained, head="question_answering"), "train")


@pytest.mark.parametrize("head", ["token_classification", "question_answering"])
def test_tokens_and_answers_are_learned(head, tmp_path, pretrained):
    if head == "token_classification":
        rows = [
            {"tokens": text.split(), "labels": ["B-m" if word == "mean" else "O" for word in text.split()]}
            for text, _ in sentences(64)
        ]
        expected = {"accuracy", "macro_f1", "span_f1"}
    else:
        rows = [question("mean", text) for text, label in sentences(128) if label == "yes"]
        expected = {"exact_match", "f1"}
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    task = read_task(path, head, validation=path)
    model = classifier(pretrained, head=head)
    before = finetuning.evaluate(model, task, "validation")[task.monitor]
    zoo.training.finetune(model, task, tmp_path / "run", epochs=8, batch_size=8, learning_rate=1e-2)
    metrics = model.metadata.metrics

    assert {name.removeprefix("validation_") for name in metrics} == expected == set(task.metrics)
    assert max(before, 0.95) < metrics[f"validation_{task.monitor}"]
    history = model.metadata.training["history"]
    best = max(epoch[f"val_{task.monitor}"] for epoch in history)
    assert metrics[f"validation_{task.monitor}"] == pytest.approx(best, abs=1e-6)
    assert zoo.get("bert", weights=tmp_path / "run" / "preset").labels == task.labels


# === Training ===


@pytest.fixture(scope="module")
def tuned(task, pretrained, tmp_path_factory):
    """A preset directory of a fine-tuned classifier, and the model."""
    model = classifier(pretrained)
    output = tmp_path_factory.mktemp("tuned")
    assert (
        zoo.training.finetune(model, task, output, epochs=6, batch_size=8, learning_rate=1e-2, layer_decay=0.9) is model
    )
    return output / "preset", model


def test_a_classifier_learns_and_the_best_epoch_is_kept(tuned, task, pretrained):
    preset, model = tuned
    training, metrics = model.metadata.training, model.metadata.metrics

    assert metrics["test_accuracy"] > 0.9 and metrics["test_macro_f1"] > 0.9
    assert {name.partition("_")[2] for name in metrics} == set(task.metrics)
    best = max(epoch["val_macro_f1"] for epoch in training["history"])
    assert metrics["validation_macro_f1"] == pytest.approx(best, abs=1e-6)
    assert training["steps"] == 6 * 8
    assert training["pretrained"]["weights_sha256"] == zoo.get("bert", weights=pretrained).metadata.weights_sha256
    assert model.metadata.licence == "MIT"
    assert model.metadata.dataset["files"]["test"]["examples"] == 32
    stored = zoo.get("bert", weights=preset)
    assert stored.labels == ["no", "yes"] and set(stored.assets) == {"tokenizer.json", "labels.json"}
    assert finetuning.evaluate(stored, task) == {name: metrics[f"test_{name}"] for name in ("accuracy", "macro_f1")}
    # Files are not there for everybody: no metric, and no inputs of their own
    assert stored.task_metric() is None and list(stored.real_inputs("predict")) == []


@pytest.mark.parametrize(("higher", "best"), [(True, 1), (False, 2)])
def test_the_best_epoch_is_the_one_with_most_or_least(higher, best):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    checkpoint = TrainingCheckpoint(None, "val_x", higher_is_better=higher)
    checkpoint.set_model(model)
    checkpoint.set_params({"epochs": 9})
    for epoch, value in enumerate([0.5, 0.7, 0.3, 0.6]):
        model.set_weights([np.full((1, 1), epoch), np.zeros(1)])
        checkpoint.on_epoch_end(epoch, {"val_x": value})
    assert checkpoint.best_weights[0] == best and not checkpoint.exists
    with pytest.raises(ValueError, match=r"`monitor` must be one of \['loss'\]\. Received: monitor='val_x'"):
        checkpoint.on_epoch_end(4, {"loss": 1.0})


class Killed(Exception):
    pass


def test_a_resumed_training_equals_an_unbroken_one(pretrained, task, tmp_path):
    options = dict(epochs=2, batch_size=16, learning_rate=1e-3, mixout=0.5, checkpoint_minutes=0, seed=5)
    head = classifier(pretrained).head_layer.get_weights()

    def model(seed, **changes):
        # Dropout and masks have another state when made: the seed of the training decides
        keras.utils.set_random_seed(seed)
        made = zoo.get("bert", weights=pretrained, head="classification", **changes)
        made.head_layer.set_weights(head)
        return made

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise Killed

    unbroken = zoo.training.finetune(model(1), task, tmp_path / "unbroken", **options)
    output = tmp_path / "killed"
    with pytest.raises(Killed):
        zoo.training.finetune(model(2), task, output, callbacks=[Kill()], **options)
    assert not (output / "preset").exists()
    with pytest.raises(ValueError, match="A training is there already"):
        zoo.training.finetune(model(3), task, output, **options)
    others = [
        (model(3), {"learning_rate": 1}, r"\{'learning_rate': 0\.001\}\. Received: \{'learning_rate': 1\}"),
        (model(3, sequence_length=8), {}, r"\{'sequence_length': 16\}\}\}\. Received: .*\{'sequence_length': 8\}\}\}"),
        (model(3), {}, r"\{'pretrained': \{'weights_sha256': '[0-9a-f]{64}'\}\}\. Received: .*'f{64}'\}\}"),
    ]
    others[2][0].pretrained = dataclasses.replace(others[2][0].pretrained, weights_sha256="f" * 64)
    for other, changes, match in others:
        with pytest.raises(ValueError, match=rf"^The checkpoint was made with other settings: .*{match}$"):
            zoo.training.finetune(other, task, output, resume=True, **{**options, **changes})
    resumed = zoo.training.finetune(model(4), task, output, resume=True, **options)
    assert len(resumed.metadata.training["history"]) == 2
    assert resumed.metadata.training == unbroken.metadata.training
    assert resumed.metadata.weights_sha256 == unbroken.metadata.weights_sha256


def test_mixout_draws_all_but_the_head_to_the_pretrained_weights(pretrained, task, monkeypatch, tmp_path):
    from zoo.training import mixout

    monkeypatch.chdir(tmp_path)
    seen = []
    strip = mixout.Mixout.strip
    monkeypatch.setattr(mixout.Mixout, "strip", lambda self: (seen.append(self), strip(self))[1])
    model = classifier(pretrained)
    before = model.backbone.encoder_layers[0].attention.query.kernel.numpy()
    zoo.training.finetune(model, task, epochs=1, learning_rate=1e-3, mixout=0.9)
    (mixed,) = seen

    assert mixed.model is model and mixed.probability == 0.9
    assert "backbone/layer_0/attention/query/kernel" in mixed.mixed and not any("head" in path for path in mixed.mixed)
    np.testing.assert_array_equal(mixed.reference()["backbone/layer_0/attention/query/kernel"], before)
    assert np.abs(model.backbone.encoder_layers[0].attention.query.kernel - before).max() > 1e-5
    # Without an output nothing is written
    assert model.metadata is None and not list(tmp_path.iterdir())


def test_frozen_groups_stay_and_train_again_afterwards(task):
    model = encoder(head="classification")
    before = {variable.path: variable.numpy() for variable in model.weights}
    zoo.training.finetune(model, task, epochs=1, learning_rate=1e-2, freeze=["embeddings", "layers:1"])
    moved = {
        path for path, value in before.items() if (value != {v.path: v for v in model.weights}[path].numpy()).any()
    }

    assert not any("embedding" in path or "layer_0/" in path for path in moved)
    assert {"layer_1", "pooler", "head"} == {
        part for part in ("layer_1", "pooler", "head") if any(part in path for path in moved)
    }
    assert all(layer.trainable for layer in model._flatten_layers())
    with pytest.raises(ValueError, match="`freeze` must be less than everything"):
        zoo.training.finetune(model, task, epochs=1, freeze=["backbone", "head"])
    assert all(layer.trainable for layer in model._flatten_layers())


def test_mixed_precision_trains_the_model_itself(pretrained, task):
    model = classifier(pretrained)
    before = model.get_weights()
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append((self.model.compute_dtype, self.model.backbone.compute_dtype))

    zoo.training.finetune(
        model, task, epochs=1, batch_size=8, learning_rate=1e-2, mixed_precision=True, callbacks=[Look()]
    )
    assert seen == [("bfloat16", "bfloat16")] and model.compute_dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    assert finetuning.evaluate(model, task)["accuracy"] >= 0.5


def test_unequal_classes_are_named_or_weighed(tmp_path, caplog):
    rows = [*[(f"array {i}", "often") for i in range(60)], *[("mean", "rare")] * 12]
    path = write_csv(tmp_path / "a.csv", rows)
    task = read_task(path, validation=path)
    assert finetuning._class_weights(task, None) is None
    assert "nothing makes up for it: {'often': 60, 'rare': 12}" in caplog.text
    np.testing.assert_allclose(finetuning._class_weights(task, "balanced"), [72 / 120, 72 / 24])
    data = finetuning._batches(np.arange(4), np.array([0, 1, 1, 0]), 4, 0, np.array([2.0, 3.0], "float32"))
    _, labels, weights = next(iter(data))
    np.testing.assert_array_equal(weights, np.where(labels == 0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(epochs=0), "`epochs` must be positive"),
        (dict(batch_size=0), "`batch_size` must be positive"),
        (dict(learning_rate=0), "`learning_rate` must be positive"),
        (dict(warmup=1.0), "`warmup` must be in"),
        (dict(weight_decay=-1), "`weight_decay` must be 0 or more"),
        (dict(layer_decay=0), "`layer_decay` must be in"),
        (dict(mixout=1.0), "`mixout` must be in"),
        (dict(class_weight="equal"), "`class_weight` must be one of"),
        (dict(freeze=["encoder"]), "`freeze` must be"),
        (dict(monitor="val_accuracy"), r"`monitor` must be one of \('loss', 'accuracy', 'macro_f1'\)"),
        (dict(monitor="span_f1"), "`monitor` must be one of .*Received: 'span_f1'"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(options, match, pretrained, task):
    with pytest.raises(ValueError, match=match):
        zoo.training.finetune(classifier(pretrained), task, **options)


def test_models_that_do_not_fit_the_task_are_refused(pretrained, task, tuned):
    with pytest.raises(ValueError, match=r"`model` must be one that reads texts, as the data are\. Received: a Image"):
        task.check(ImageClassifier())
    for model in (zoo.get("bert", weights=pretrained), classifier(pretrained, num_classes=3)):
        with pytest.raises(ValueError, match=r"`model` must have \{'head': 'classification', 'num_classes': 2\}"):
            zoo.training.finetune(model, task)
    other = zoo.get("bert", weights=tuned[0])
    other.labels = ["a", "b"]
    with pytest.raises(ValueError, match=r"new head for other classes.*labels=\['a', 'b'\]"):
        zoo.training.finetune(other, task)
    with pytest.raises(NotImplementedError, match="Own defines no encode"):
        type("Own", (Task,), {"head": "classification"})({}, {}, {}).encode(None, "train")
    with pytest.raises(ValueError, match=r"`split` must be one of \['train', 'validation', 'test'\]"):
        finetuning.evaluate(tuned[1], task, "held_out")


# === Images ===


def test_an_image_classifier_is_fine_tuned_on_a_data_set(tmp_path):
    sizes = dict(network="mlp", units=[32], input_shape=[8, 8, 1], isometry_steps=0)
    model = zoo.get("signal_propagation_pruning", weights=None, **sizes).with_head()
    task = read_task("digits")
    zoo.training.finetune(model, task, tmp_path, epochs=4, batch_size=16, learning_rate=1e-2, layer_decay=0.5)
    metrics = model.metadata.metrics

    assert metrics["test_accuracy"] > 0.6
    again = zoo.get("signal_propagation_pruning", weights=tmp_path / "preset")
    assert finetuning.evaluate(again, task)["accuracy"] == pytest.approx(metrics["test_accuracy"])
    metric = again.task_metric()
    assert metric.name == "accuracy" and again.metadata.evaluation_dataset == "digits"
    assert metric.compute(lambda name, inputs: again.run(name, **inputs)) == pytest.approx(metrics["test_accuracy"])
    with pytest.raises(ValueError, match="num_classes"):
        zoo.training.finetune(model.with_head(num_classes=4), task)
    with pytest.raises(ValueError, match=r"`model` must be one that reads images, as the data are\. Received: a Bert"):
        task.check(encoder(head="classification", num_classes=10))


def test_statistics_of_normalisation_are_of_the_new_images():
    task = read_task("digits")
    names = [type(callback).__name__ for callback in task.callbacks(None, tf.data.Dataset.range(1))]
    assert names == ["RefreshStatistics"]


# === Leaving ===


@pytest.fixture(scope="module")
def on_docstrings(tmp_path_factory):
    """A classifier fine-tuned on the labelled data set of the catalog."""
    model = encoder(head="classification", num_classes=4, num_layers=1)
    task = read_task("docstring_packages", examples=64)
    output = tmp_path_factory.mktemp("docstrings")
    zoo.training.finetune(model, task, output, epochs=1, learning_rate=1e-3)
    return zoo.get("bert", weights=output / "preset")


def test_a_recorded_data_set_judges_exports(on_docstrings):
    model = on_docstrings
    metric = model.task_metric()
    run = lambda name, inputs: model.run(name, **inputs)  # noqa: E731
    assert metric.name == "accuracy" and metric.higher_is_better
    assert model.metadata.dataset["examples"] == model.metadata.training["task"]["examples"] == 64
    assert metric.compute(run) == pytest.approx(model.metadata.metrics["test_accuracy"])
    texts = load_arrays("docstring_packages", "validation")["text"].tolist()
    first = next(iter(model.real_inputs("predict", batch_size=2)))
    for name, array in model.text_inputs(texts[:2], truncate=True).items():
        np.testing.assert_array_equal(first[name], array)
    assert set(first) == set(model.signatures()["encode"].inputs)


def test_bundles_carry_the_tokenizer_and_the_labels(on_docstrings, tmp_path):
    report = zoo.export.export_model(on_docstrings, tmp_path / "bundle", ["litert"], "dynamic_int8", benchmark=False)
    assets = tmp_path / "bundle" / "assets"
    assert {path.name for path in assets.iterdir()} == {"tokenizer.json", "labels.json"}
    assert json.loads((assets / "labels.json").read_text()) == list(docstring_packages.CLASSES)
    tokenizer = load_tokenizer((assets / "tokenizer.json").read_bytes())
    texts = ["The mean of an array.", "Ünder x_1 -> [0)!", "mean " * 5]
    inputs = on_docstrings.text_inputs(texts)
    for row, encoding in enumerate(tokenizer.encode_batch(texts)):
        count = inputs["padding_mask"][row].sum()
        assert encoding.ids == inputs["token_ids"][row, :count].tolist()
    (artifact,) = report.artifacts
    assert artifact.metric.name == "accuracy"
    assert artifact.metric.reference == pytest.approx(on_docstrings.metadata.metrics["test_accuracy"], abs=1e-6)
    assert abs(artifact.metric.value - artifact.metric.reference) <= 0.01


def test_own_texts_calibrate(tuned, tmp_path):
    _, model = tuned
    path = write_csv(tmp_path / "texts.csv", [("the mean",), ("an array",)], ("text",))
    inputs = example_inputs(model, path)
    assert set(inputs) == {"predict", "encode"} and len(inputs["predict"]) == 2
    np.testing.assert_array_equal(inputs["encode"][1]["token_ids"], model.text_inputs(["an array"])["token_ids"])
    with pytest.raises(ValueError, match="takes no plain texts"):
        example_inputs(encoder(head="masked_lm"), path)
    with pytest.raises(ValueError, match=r"A column 'text' must be there\. Received"):
        example_inputs(model, write_csv(tmp_path / "other.csv", [("x",)], ("body",)))


def test_log_of_cut_texts(pretrained, tmp_path, caplog):
    path = write_csv(tmp_path / "a.csv", [("mean " * 40, "a"), ("x", "b")])
    with caplog.at_level(logging.WARNING):
        read_task(path, validation=path).encode(classifier(pretrained), "train")
    assert "1 of 2 train examples fill all 16 tokens" in caplog.text
