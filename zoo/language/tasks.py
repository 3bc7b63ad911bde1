"""Tasks of texts: classes of texts and of their tokens, and answers in contexts."""

from __future__ import annotations

import collections
import itertools
import logging
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zoo.arguments import require
from zoo.files import sha256
from zoo.language.task_files import Row, class_ids, class_names, label_of, read_rows, text_of, texts_of, value_of
from zoo.language.tokenizers import own_copy, padded, special_ids
from zoo.training.task import Task, hold_out, label_metrics, label_scores, ordered_counts, run_predict

if TYPE_CHECKING:
    import keras
    from tokenizers import Encoding

    from zoo.language.text_encoder import TextEncoder
    from zoo.metadata import Metadata
    from zoo.model import Arrays, Runner

_logger = logging.getLogger(__name__)

PAIR_COLUMN = "text_pair"
# Tokens of the longest answer that is looked for, and those that windows of a context share, where there is room
ANSWER_TOKENS, WINDOW_OVERLAP = 30, 128


def _warn_of_cuts(inputs: Arrays, split: str) -> None:
    """Says how many texts of the train split may have lost their end."""
    length = inputs["padding_mask"].shape[1]
    full = int((inputs["padding_mask"].sum(axis=1) == length).sum())
    if full and split == "train":
        _logger.warning(
            "%d of %d train examples fill all %d tokens; what goes beyond `sequence_length` is cut",
            full,
            len(inputs["token_ids"]),
            length,
        )


# === Classes of texts ===


class Texts(NamedTuple):
    """A split of labelled texts, or pairs of texts."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[str]


class TextClassification(Task):
    """Classes of texts or pairs of texts.

    Args:
        splits: see `Task`; each a `Texts`.
        record: see `Task`.
        options: see `Task`.
        labels: sequence of str or None. Names of the classes; those of the train split by default.

    Raises:
        ValueError: for a class that is not among them.
    """

    head = "classification"
    examples = "texts"
    reads = "text_inputs"
    monitor = "macro_f1"

    def __init__(
        self,
        splits: Mapping[str, Texts],
        record: Mapping[str, Any],
        options: Mapping[str, Any],
        labels: Sequence[str] | None = None,
    ) -> None:
        super().__init__(splits, record, options)
        self.labels = class_names(self.splits["train"].labels) if labels is None else list(labels)
        self.num_classes = len(self.labels)
        self._ids = {split: class_ids(part.labels, self.labels, split) for split, part in self.splits.items()}

    @classmethod
    def of_arrays(
        cls, splits: Mapping[str, Mapping[str, np.ndarray]], record: Mapping[str, Any], options: Mapping[str, Any]
    ) -> TextClassification:
        """Makes a task of what `zoo.datasets.load_arrays` gives: `text` and `label`."""
        return cls(
            {
                split: Texts(arrays["text"].tolist(), None, [str(label) for label in arrays["label"]])
                for split, arrays in splits.items()
            },
            record,
            options,
        )

    @staticmethod
    def read(rows: Sequence[Row], columns: Mapping[str, str | None]) -> Texts:
        """Reads the rows of a file."""
        text, pair, label = (columns[f"{name}_column"] for name in ("text", "pair", "label"))
        pairs = None if pair is None else [text_of(row, pair) for row in rows]
        return Texts([text_of(row, text) for row in rows], pairs, [label_of(row, label) for row in rows])

    def encode(self, model: TextEncoder, split: str) -> tuple[Any, Any]:
        """Returns tokens, cut to the model's `sequence_length`, and classes."""
        part = self.splits[split]
        inputs = model.text_inputs(part.texts, part.pairs, truncate=True)
        _warn_of_cuts(inputs, split)
        return inputs, np.array(self._ids[split], "int32")

    def scorer(self, model: TextEncoder, split: str) -> Callable[[Runner], dict[str, float]]:
        """Returns the function that computes `accuracy` and `macro_f1`."""
        inputs, labels = self.encode(model, split)
        return lambda run: label_scores(labels, run_predict(run, inputs)["logits"])

    def compile_arguments(self) -> dict[str, Any]:
        """Returns metrics; the loss is the head's."""
        return {"metrics": label_metrics(self.num_classes)}

    def class_counts(self) -> dict[str, int]:
        """Returns how many train texts each class has."""
        return ordered_counts(self.splits["train"].labels)


# === Classes of tokens ===


class Tokens(NamedTuple):
    """A split of texts as words, each with a label."""

    tokens: list[list[str]]
    labels: list[list[str]]


def validation_scores(task: Task, model: TextEncoder) -> keras.callbacks.Callback:
    """Returns a callback that computes a task's metrics on the validation split after each epoch, as `val_<metric>`."""
    import keras

    from zoo.export.verify import keras_runner

    score, run = task.scorer(model, "validation"), keras_runner(model.signatures(), traced=True)

    def add(epoch: int, logs: dict[str, float]) -> None:
        logs.update({f"val_{name}": value for name, value in score(run).items()})

    return keras.callbacks.LambdaCallback(on_epoch_end=add)


class TokenClassification(Task):
    """Classes of words; the first piece of a word stands for it, as is usual.

    Where all labels are `O`, `B-...` and `I-...`, whole spans are scored too.

    Args:
        splits: see `Task`; each a `Tokens`.
        record: see `Task`.
        options: see `Task`.
        labels: sequence of str or None. Names of the classes; those of the train split by default.

    Raises:
        ValueError: for a class that is not among them.

    Reference:
        Devlin et al. 2019, section 5.3.
    """

    head = "token_classification"
    examples = "texts"
    reads = "text_inputs"

    def __init__(
        self,
        splits: Mapping[str, Tokens],
        record: Mapping[str, Any],
        options: Mapping[str, Any],
        labels: Sequence[str] | None = None,
    ) -> None:
        super().__init__(splits, record, options)
        all_labels = {split: [label for row in part.labels for label in row] for split, part in self.splits.items()}
        self.labels = class_names(all_labels["train"]) if labels is None else list(labels)
        self.num_classes = len(self.labels)
        for split, found in all_labels.items():
            class_ids(found, self.labels, split)
        self.has_spans = all(label == "O" or label[:2] in ("B-", "I-") for label in self.labels)
        self.monitor = "span_f1" if self.has_spans else "macro_f1"
        self.metrics = (*Task.metrics, *(("span_f1",) if self.has_spans else ()))

    @staticmethod
    def read(rows: Sequence[Row], columns: Mapping[str, str | None]) -> Tokens:
        """Reads the rows of a file."""
        part = Tokens([texts_of(row, "tokens") for row in rows], [texts_of(row, "labels") for row in rows])
        for row, tokens, labels in zip(rows, *part, strict=True):
            if len(tokens) != len(labels):
                raise ValueError(
                    f"'labels' must be one for each of {len(tokens)} tokens. Received: {len(labels)} in {row.place}"
                )
        return part

    def encode(self, model: TextEncoder, split: str) -> tuple[Any, Any]:
        """Returns tokens, and the classes at the first piece of each word, -1 elsewhere."""
        part, length = self.splits[split], model.sequence_length
        tokenizer = own_copy(model.tokenizer)
        tokenizer.enable_truncation(length)
        encodings = tokenizer.encode_batch(part.tokens, is_pretokenized=True)
        targets = np.full((len(encodings), length), -1, "int32")
        for row, (encoding, labels) in enumerate(zip(encodings, part.labels, strict=True)):
            ids, before = class_ids(labels, self.labels, split), None
            for place, word in enumerate(encoding.word_ids):
                if word is not None and word != before:
                    targets[row, place] = ids[word]
                before = word
        inputs = padded(encodings, length, special_ids(tokenizer).padding)
        _warn_of_cuts(inputs, split)
        return inputs, targets

    def scorer(self, model: TextEncoder, split: str) -> Callable[[Runner], dict[str, float]]:
        """Returns the function that computes `accuracy`, `macro_f1` and, for spans, `span_f1`."""
        inputs, targets = self.encode(model, split)

        def score(run: Runner) -> dict[str, float]:
            logits = run_predict(run, inputs)["logits"]
            found = label_scores(targets, logits)
            if not self.has_spans:
                return found
            kept, predicted = targets >= 0, logits.argmax(axis=-1)
            named = [
                [[self.labels[label] for label in row[keep]] for row, keep in zip(ids, kept, strict=True)]
                for ids in (targets, predicted)
            ]
            return {**found, "span_f1": span_f1(*named)}

        return score

    def compile_arguments(self) -> dict[str, Any]:
        """Returns metrics; the loss is the head's."""
        return {"metrics": label_metrics(self.num_classes)}

    def callbacks(self, model: TextEncoder, train: Any) -> list[keras.callbacks.Callback]:
        """Returns what scores spans."""
        return [validation_scores(self, model)] if self.has_spans else []

    def class_counts(self) -> dict[str, int]:
        """Returns how many train words each class has."""
        return ordered_counts([label for row in self.splits["train"].labels for label in row])


def spans(labels: Sequence[str]) -> set[tuple[int, int, str]]:
    """Returns first word, end and type of the spans that labels `O`, `B-type` and `I-type` mark.

    An `I-` that continues no span of its type begins one, as in CoNLL's evaluation.
    """
    found, start, kind = set(), 0, ""
    for place, label in enumerate([*labels, "O"]):
        mark, _, own = label.partition("-")
        if kind and (mark != "I" or own != kind):
            found.add((start, place, kind))
            kind = ""
        if mark in ("B", "I") and not kind:
            start, kind = place, own
    return found


def span_f1(expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Returns F1 of whole spans: of those expected and those predicted, how many are both, in place and in type.

    Args:
        expected: sequence of sequences of labels.
        predicted: sequence of the same form.

    Reference:
        Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 Shared Task", section 2.4.
    """
    pairs = [(spans(ours), spans(theirs)) for ours, theirs in zip(expected, predicted, strict=True)]
    total = sum(len(ours) + len(theirs) for ours, theirs in pairs)
    return 2 * sum(len(ours & theirs) for ours, theirs in pairs) / total if total else 0.0


# === Answers ===


class Question(NamedTuple):
    """A question whose answer is a part of a context, from a character on."""

    question: str
    context: str
    start: int
    answer: str


class QuestionAnswering(Task):
    """Answers that are parts of a context.

    A context that is too long is read in windows that overlap; the answer is the best one of all windows.

    Args:
        splits: see `Task`; each a list of `Question`.
        record: see `Task`.
        options: see `Task`.
        labels: None: there are no classes.

    Reference:
        Rajpurkar et al. 2016, "SQuAD", section 6.1; Devlin et al. 2019, section 4.2.
    """

    head = "question_answering"
    examples = "texts"
    reads = "text_inputs"
    metrics = ("exact_match", "f1")
    monitor = "f1"

    def __init__(
        self,
        splits: Mapping[str, list[Question]],
        record: Mapping[str, Any],
        options: Mapping[str, Any],
        labels: None = None,
    ) -> None:
        super().__init__(splits, record, options)

    @staticmethod
    def read(rows: Sequence[Row], columns: Mapping[str, str | None]) -> list[Question]:
        """Reads the rows of a file."""
        return [_question(row) for row in rows]

    def _windows(self, model: TextEncoder, split: str) -> tuple[list[Encoding], list[int]]:
        """Returns each question with a window of its context, and which example it is of."""
        part, length = self.splits[split], model.sequence_length
        tokenizer = own_copy(model.tokenizer)
        questions = tokenizer.encode_batch_fast([example.question for example in part])
        longest = max(len(encoding.ids) for encoding in questions)
        # A context has one special token after it
        room = length - longest - 1
        if room < 1:
            raise ValueError(
                f"Every question must leave room for its context in {length} tokens. Received: one of {longest} tokens"
            )
        tokenizer.enable_truncation(length, stride=min(WINDOW_OVERLAP, room // 2), strategy="only_second")
        encodings = tokenizer.encode_batch([(example.question, example.context) for example in part])
        windows = [[first, *first.overflowing] for first in encodings]
        return list(itertools.chain(*windows)), [row for row, each in enumerate(windows) for _ in each]

    def encode(self, model: TextEncoder, split: str) -> tuple[Any, Any]:
        """Returns tokens of question and context, and the places of the answer's first and last token.

        Windows of train contexts without the whole answer are left out; those of others have the place -1.
        """
        windows, rows = self._windows(model, split)
        part = self.splits[split]
        places = np.array(
            [answer_tokens(window, part[row]) for window, row in zip(windows, rows, strict=True)], "int32"
        )
        inputs = padded(windows, model.sequence_length, special_ids(model.tokenizer).padding)
        if split == "train":
            whole = places[:, 0] >= 0
            missing = len(part) - len(set(np.array(rows)[whole]))
            if missing:
                _logger.warning("%d of %d train examples have an answer that no window holds", missing, len(part))
            require(whole.any(), "sequence_length", "enough for some train answers", model.sequence_length)
            inputs, places = {name: array[whole] for name, array in inputs.items()}, places[whole]
        return inputs, {"start_positions": places[:, 0], "end_positions": places[:, 1]}

    def scorer(self, model: TextEncoder, split: str) -> Callable[[Runner], dict[str, float]]:
        """Returns the function that computes `exact_match` and `f1` of the answers' words."""
        (windows, rows), part = self._windows(model, split), self.splits[split]
        inputs = padded(windows, model.sequence_length, special_ids(model.tokenizer).padding)

        def score(run: Runner) -> dict[str, float]:
            outputs = run_predict(run, inputs)
            best = [(-np.inf, "")] * len(part)
            for row, window, *logits in zip(rows, windows, outputs["start_logits"], outputs["end_logits"], strict=True):
                best[row] = max(best[row], best_answer(window, part[row].context, *logits))
            answers = [answer for _, answer in best]
            matches = [answer_words(a) == answer_words(e.answer) for a, e in zip(answers, part, strict=True)]
            overlaps = [answer_f1(a, e.answer) for a, e in zip(answers, part, strict=True)]
            return {"exact_match": float(np.mean(matches)), "f1": float(np.mean(overlaps))}

        return score

    def callbacks(self, model: TextEncoder, train: Any) -> list[keras.callbacks.Callback]:
        """Returns what scores answers."""
        return [validation_scores(self, model)]


def _question(row: Row) -> Question:
    question, context, answer = (text_of(row, column) for column in ("question", "context", "answer"))
    start = value_of(row, "answer_start")
    fits = type(start) is int and start >= 0 and context[start : start + len(answer)] == answer
    if not fits:
        raise ValueError(
            f"'answer' must stand in 'context' from character 'answer_start' on. "
            f"Received: answer_start={start!r} of {answer!r} in {row.place}"
        )
    return Question(question, context, start, answer)


def _context_places(encoding: Encoding) -> list[int]:
    return [place for place, sequence in enumerate(encoding.sequence_ids) if sequence == 1]


def answer_tokens(encoding: Encoding, example: Question) -> tuple[int, int]:
    """Returns the places of the first and the last token of an answer; -1 where a window does not hold all of it.

    Args:
        encoding: `Encoding` of a question and a window of its context.
        example: `Question`.
    """
    end = example.start + len(example.answer.rstrip())
    start = end - len(example.answer.strip())
    places = [p for p in _context_places(encoding) if encoding.offsets[p][1] > start and encoding.offsets[p][0] < end]
    if not places or encoding.offsets[places[0]][0] > start or encoding.offsets[places[-1]][1] < end:
        return -1, -1
    return places[0], places[-1]


def best_answer(
    encoding: Encoding, context: str, start_logits: np.ndarray, end_logits: np.ndarray
) -> tuple[float, str]:
    """Returns the largest sum of logits and the part of a context that has it, of at most `ANSWER_TOKENS` tokens.

    Args:
        encoding: `Encoding` of a question and a window of its context.
        context: str.
        start_logits: float array `(length,)`.
        end_logits: float array `(length,)`.
    """
    places = np.array(_context_places(encoding))
    if not len(places):
        return -np.inf, ""
    sums = start_logits[places][:, None] + end_logits[places][None]
    allowed = np.triu(np.ones(sums.shape, bool)) & ~np.triu(np.ones(sums.shape, bool), ANSWER_TOKENS)
    first, last = np.unravel_index(np.where(allowed, sums, -np.inf).argmax(), sums.shape)
    answer = context[encoding.offsets[places[first]][0] : encoding.offsets[places[last]][1]]
    return float(sums[first, last]), answer


def answer_words(answer: str) -> list[str]:
    """Returns the words of an answer that count: in lower case, without punctuation and articles."""
    text = "".join(character for character in answer.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def answer_f1(answer: str, expected: str) -> float:
    """Returns F1 of the words that two answers share."""
    ours, theirs = answer_words(answer), answer_words(expected)
    shared = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if ours or theirs else 1.0


# === Files ===

_TASKS = {task.head: task for task in (TextClassification, TokenClassification, QuestionAnswering)}


def file_task(paths: Mapping[str, str | Path | None], head: str, columns: Mapping[str, str | None]) -> Task:
    """Reads a task from files, see `zoo.training.read_task`.

    Args:
        paths: mapping from split to path; None where there is no file.
        head: str.
        columns: mapping with `text_column`, `pair_column` and `label_column`.
    """
    kind = _TASKS[head]
    rows = {split: read_rows(path) for split, path in paths.items() if path is not None}
    columns = _with_pair(columns, rows["train"])
    if head == "classification":
        for part in rows.values():
            _check_columns(columns, part[0])
    splits = {split: kind.read(part, columns) for split, part in rows.items()}
    record = _record(paths, rows)
    if "validation" not in splits:
        labels = splits["train"].labels if head == "classification" else None
        kept, held = hold_out(len(rows["train"]), labels)
        chosen = {"train": kept, "validation": held}
        splits |= {
            split: kind.read([rows["train"][place] for place in where], columns) for split, where in chosen.items()
        }
        _logger.warning("No validation file: %d of %d examples are held out as one", len(held), len(rows["train"]))
        record["held_out"] = len(held)
    return kind(splits, record, columns if head == "classification" else {})


def _with_pair(columns: Mapping[str, str | None], rows: Sequence[Row]) -> dict[str, str | None]:
    found = PAIR_COLUMN if PAIR_COLUMN in rows[0].values else None
    return {**columns, "pair_column": columns["pair_column"] or found}


def _check_columns(columns: Mapping[str, str | None], row: Row) -> None:
    """Refuses columns that a file does not have, and says which argument names others."""
    for argument, column in columns.items():
        if column is not None and column not in row.values:
            raise ValueError(
                f"A column {column!r} must be there; `{argument}` (`--{argument.replace('_', '-')}`) names another. "
                f"Received: {list(row.values)} in {row.place}"
            )


def _record(paths: Mapping[str, str | Path | None], rows: Mapping[str, list[Row]]) -> dict[str, Any]:
    files = {
        split: {"name": Path(paths[split]).name, "sha256": sha256(paths[split]), "examples": len(part)}
        for split, part in rows.items()
    }
    return {"name": files["train"]["name"], "split": "train", "sha256": files["train"]["sha256"], "files": files}


def further_task(model: TextEncoder, metadata: Metadata, path: str | Path) -> Task:
    """Reads a file for a model that was fine-tuned on others like it, as the test split.

    Args:
        model: fine-tuned `TextEncoder`.
        metadata: `Metadata` of it.
        path: path of a file with the same columns.
    """
    rows = read_rows(path)
    options = dict(metadata.training["task"])
    kind = _TASKS[options.pop("head")]
    part = kind.read(rows, {"pair_column": None, **options})
    return kind({"test": part}, _record({"test": path, "train": path}, {"train": rows}), options, model.labels)


def example_inputs(model: TextEncoder, path: str | Path) -> dict[str, list[Arrays]]:
    """Reads a file as example inputs of a model's signatures, by which int8 exports measure ranges.

    Args:
        model: `TextEncoder`.
        path: path of a file: of the columns that the model was fine-tuned on, labels of texts not needed, else with `text`
            and perhaps `text_pair`.

    Raises:
        ValueError: for a model that reads no text, or whose head needs other inputs.
    """
    readable = hasattr(model, "text_inputs") and getattr(model, "head", None) != "masked_lm"
    require(readable, "calibration", "None for a model that takes no plain texts", str(path))
    options = model.metadata.training.get("task", {}) if model.metadata is not None else {}
    if model.head in ("token_classification", "question_answering"):
        require(bool(options), "model", "fine-tuned, to know what stands in the file", model.head)
        inputs, _ = further_task(model, model.metadata, path).encode(model, "test")
    else:
        rows = read_rows(path)
        columns = _with_pair({"text_column": "text", "pair_column": None, **options}, rows)
        texts, pairs = (columns[f"{name}_column"] for name in ("text", "pair"))
        second = None if pairs is None else [text_of(row, pairs) for row in rows]
        inputs = model.text_inputs([text_of(row, texts) for row in rows], second, truncate=True)
    return {name: list(_single(inputs)) for name in model.signatures()}


def _single(inputs: Arrays) -> Iterator[Arrays]:
    for place in range(len(inputs["token_ids"])):
        yield {name: array[place : place + 1] for name, array in inputs.items()}
