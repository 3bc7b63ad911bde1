"""Labelled data and how a head learns it: what fine-tuning, evaluation and exports know of a task.

Imports no TensorFlow, so that data is read and judged before anything slow begins.
"""

from __future__ import annotations

import collections
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo import datasets
from zoo.arguments import require

if TYPE_CHECKING:
    import keras

    from zoo.metadata import Metadata
    from zoo.model import Arrays, Runner, ZooModel

SPLITS = ("train", "validation", "test")
HEADS = ("classification", "token_classification", "question_answering")
SCORED_BATCH = 50
# Share of a train split that is held out where there is no validation split
HELD_OUT = 0.1


class Task:
    """Base of tasks.

    Args:
        splits: mapping from `SPLITS`, of which `"test"` may be missing, to examples as the subclass has them.
        record: mapping. What the metadata of a checkpoint says of the data.
        options: mapping. Arguments of `read_task` that read the same columns again.
    """

    head: str
    # What the examples are, and the method by which a model takes them
    examples: str
    reads: str
    # The metrics that `scores` gives
    metrics: tuple[str, ...] = ("accuracy", "macro_f1")
    # The metric of the validation split that the best epoch has most of
    monitor: str
    # Names of the classes, where they have such
    labels: list[str] | None = None
    num_classes: int | None = None

    def __init__(self, splits: Mapping[str, Any], record: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self.splits = dict(splits)
        self.record = dict(record)
        self.options = {"head": self.head, **{name: value for name, value in options.items() if value is not None}}

    def encode(self, model: ZooModel, split: str) -> tuple[Any, Any]:
        """Returns a split as inputs and targets of `fit`."""
        raise NotImplementedError(f"{type(self).__name__} defines no encode.")

    def scorer(self, model: ZooModel, split: str) -> Callable[[Runner], dict[str, float]]:
        """Returns the function that computes a split's metrics from the signature `predict`."""
        raise NotImplementedError(f"{type(self).__name__} defines no scorer.")

    def scores(self, model: ZooModel, run: Runner, split: str) -> dict[str, float]:
        """Returns the metrics of a split.

        Args:
            model: `ZooModel`, which reads the examples.
            run: `Runner`. What answers, such as an exported artifact.
            split: str.
        """
        require(split in self.splits, "split", f"one of {list(self.splits)}", repr(split))
        return self.scorer(model, split)(run)

    def compile_arguments(self) -> dict[str, Any]:
        """Returns the loss, where the model has none of its own, and metrics."""
        return {}

    def callbacks(self, model: ZooModel, train: Any) -> list[keras.callbacks.Callback]:
        """Returns what has to happen before an epoch's weights are judged.

        Args:
            model: `ZooModel`.
            train: `tf.data.Dataset` of training batches.
        """
        return []

    def class_counts(self) -> dict[str, int]:
        """Returns how many train examples each class has; nothing where examples have no class."""
        return {}

    def check(self, model: ZooModel) -> None:
        """Refuses a model of other data, with another head, another number of classes, or classes of other names.

        Raises:
            ValueError: for such a model.
        """
        expected = f"one that reads {self.examples}, as the data are"
        require(hasattr(model, self.reads), "model", expected, f"a {type(model).__name__}")
        expected = {"head": self.head} | ({} if self.num_classes is None else {"num_classes": self.num_classes})
        found = {name: getattr(model, name, None) for name in expected}
        if found != expected:
            raise ValueError(f"`model` must have {expected}, see `with_head`. Received: {found}")
        labels = getattr(model, "labels", None)
        if self.labels is not None and labels not in (None, self.labels):
            raise ValueError(
                f"`model` must have a new head for other classes, {self.labels}. Received: labels={labels}"
            )


# === Scores ===


def run_predict(run: Runner, inputs: Arrays) -> Arrays:
    """Runs the signature `predict` in batches."""
    count = len(next(iter(inputs.values())))
    parts = [
        run("predict", {name: array[start : start + SCORED_BATCH] for name, array in inputs.items()})
        for start in range(0, count, SCORED_BATCH)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def label_scores(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Returns `accuracy` and `macro_f1` of int labels, where they are not below 0."""
    from zoo.training.metrics import LabelAccuracy, MacroF1

    return {metric.name: float(metric(labels, logits)) for metric in (LabelAccuracy(), MacroF1())}


def label_metrics(num_classes: int) -> list[keras.metrics.Metric]:
    """Returns new metrics of int labels."""
    from zoo.training.metrics import LabelAccuracy, MacroF1

    metrics = [LabelAccuracy(), MacroF1()]
    for metric in metrics:
        # State that is made within the first step has it traced twice
        metric.update_state(np.zeros(1, "int32"), np.zeros((1, num_classes), "float32"))
        metric.reset_state()
    return metrics


# === Images ===


class ImageClassification(Task):
    """Images of a data set of the catalog, for image classifiers.

    Args:
        splits: see `Task`; dicts of `image` and `label`.
        record: see `Task`.
        options: see `Task`.

    Raises:
        ValueError: for a class that the train split lacks.
    """

    head = "classification"
    examples = "images"
    reads = "preprocess"
    monitor = "macro_f1"

    def __init__(self, splits: Mapping[str, Any], record: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        super().__init__(splits, record, options)
        known = set(self.splits["train"]["label"].tolist())
        for split, arrays in self.splits.items():
            unseen = sorted(set(arrays["label"].tolist()) - known)
            require(not unseen, split, f"of classes of the train split, {sorted(known)}", unseen)
        self.num_classes = max(known) + 1

    def encode(self, model: ZooModel, split: str) -> tuple[Any, Any]:
        """Returns images as the model takes them, and labels."""
        arrays = self.splits[split]
        return model.preprocess(arrays["image"]), arrays["label"].astype("int32")

    def scorer(self, model: ZooModel, split: str) -> Callable[[Runner], dict[str, float]]:
        """Returns the function that computes `accuracy` and `macro_f1`."""
        images, labels = self.encode(model, split)
        return lambda run: label_scores(labels, run_predict(run, {"image": images})["logits"])

    def compile_arguments(self) -> dict[str, Any]:
        """Returns the cross-entropy of logits."""
        import keras

        return {
            "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "metrics": label_metrics(self.num_classes),
        }

    def callbacks(self, model: ZooModel, train: Any) -> list[keras.callbacks.Callback]:
        """Returns what takes the statistics of normalisation from the new images: a short training leaves them behind."""
        from zoo.training.statistics import RefreshStatistics

        return [RefreshStatistics(train)]

    def class_counts(self) -> dict[str, int]:
        """Returns how many train images each class has."""
        return ordered_counts(self.splits["train"]["label"].tolist())


def ordered_counts(labels: Sequence[Any]) -> dict[str, int]:
    """Returns how often each label is there, sorted by label."""
    return {str(label): count for label, count in sorted(collections.Counter(labels).items())}


# === Reading ===


def read_task(
    dataset: str | Path,
    head: str = "classification",
    *,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    text_column: str = "text",
    pair_column: str | None = None,
    label_column: str = "label",
    examples: int | None = None,
) -> Task:
    """Reads labelled data.

    Files are CSV, with a line of column names, or JSONL. For texts they have the columns below; for `token_classification`
    JSONL with lists `tokens` and `labels` of one length; for `question_answering` JSONL with `question`, `context`,
    `answer_start` (in characters) and `answer`. Classes are those of the train split, sorted.

    Args:
        dataset: name of a labelled data set of `zoo.datasets`, or path of a file, the train split.
        head: str. One of `HEADS`.
        validation: path or None. File of the validation split; without one a tenth of the train split is held out, of every
            class as many, the same ones each time.
        test: path or None. File of the test split.
        text_column: str. Column of the text. Defaults to `"text"`.
        pair_column: str or None. Column of a second text; `"text_pair"` by default, where there is one.
        label_column: str. Column of the label. Defaults to `"label"`.
        examples: int or None. Train examples of a data set with that option.

    Returns:
        A `Task`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unknown data set or one without labels, malformed files, missing columns, empty texts, and classes
            that the train split lacks.
    """
    require(head in HEADS, "head", f"one of {HEADS}", repr(head))
    columns = {"text_column": text_column, "pair_column": pair_column, "label_column": label_column}
    if is_file(dataset):
        require(examples is None, "examples", "None for a file", examples)
        from zoo.language import tasks

        return tasks.file_task({"train": dataset, "validation": validation, "test": test}, head, columns)
    info = datasets.info(str(dataset))
    given = [str(path) for path in (validation, test) if path is not None]
    require(not given, "validation, test", f"None for {info.name!r}, which has such splits", given)
    options = {} if examples is None else {"examples": examples}
    # Files have the same columns in all splits, the option is of the train split alone
    features = set(info.features)
    record = {"name": info.name, "split": "train", "sha256": info.sha256, "licence": info.licence, **options}
    fits = head == "classification" and "label" in features and features & {"image", "text"}
    require(bool(fits), "dataset", f"one with labels for the head {head!r}", f"{info.name!r} with {sorted(features)}")
    splits = {split: datasets.load_arrays(info.name, split, **options) for split in SPLITS}
    if "image" in features:
        return ImageClassification(splits, record, options)
    from zoo.language import tasks

    return tasks.TextClassification.of_arrays(splits, record, options)


def is_file(dataset: str | Path) -> bool:
    """Whether a name means a file of examples: it is a path, ends like one, or exists and is no data set."""
    if isinstance(dataset, Path) or "/" in dataset or "\\" in dataset or Path(dataset).suffix:
        return True
    return dataset not in datasets.list_datasets() and Path(dataset).is_file()


def recorded_task(metadata: Metadata) -> Task | None:
    """Returns the labelled data of the catalog that a checkpoint was fine-tuned on; None for any other checkpoint.

    Args:
        metadata: `Metadata`.
    """
    options = metadata.training.get("task")
    if options is None or "files" in metadata.dataset:
        return None
    return _catalog_task(metadata.dataset["name"], json.dumps(options))


@functools.lru_cache(maxsize=2)
def _catalog_task(name: str, options: str) -> Task:
    # An export asks for the same one again and again
    return read_task(name, **json.loads(options))


def hold_out(count: int, labels: Sequence[str] | None) -> tuple[list[int], list[int]]:
    """Returns places of a train split that stay, and those held out of it: a tenth, of each class where there are such.

    Args:
        count: int. Examples.
        labels: sequence of str or None.

    Raises:
        ValueError: if there are too few examples to hold any out.
    """
    order = np.random.default_rng(0).permutation(count)
    groups: dict[str, list[int]] = {}
    for place in order:
        groups.setdefault("" if labels is None else labels[place], []).append(int(place))
    held = sorted(place for group in groups.values() for place in group[: round(HELD_OUT * len(group))])
    require(bool(held), "validation", "a file, for too few examples of the train split to hold a tenth out", count)
    return sorted(set(range(count)) - set(held)), held
