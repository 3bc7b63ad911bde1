"""Segment pairs and masks: what they are made of, and how often. Statistical tests have fixed seeds and 3 or 4 s.e."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from zoo.datasets import docstrings, load_arrays
from zoo.language import pretraining_data as data
from zoo.language.tokenizers import SpecialIds, train_tokenizer, word_starts
from zoo.sequence.tokenizer import load_tokenizer

IDS = SpecialIds(padding=0, start=2, separator=3, mask=4)
SIZE = 60
# Pieces from 40 on go on with a word
STARTS = np.arange(SIZE) < 40


def documents(count=300, rng=0, sentences=9, words=8):
    """Random documents, every token of which says where it is from: 1,000,000 document + 1,000 sentence + place."""
    rng = np.random.default_rng(rng)
    return [
        [
            1_000_000 * index + 1000 * sentence + np.arange(rng.integers(1, words))
            for sentence in range(rng.integers(2, sentences))
        ]
        for index in range(1, count + 1)
    ]


def origin(tokens):
    return set((tokens // 1_000_000).tolist()), sorted(set((tokens // 1000 % 1000).tolist()))


# === Pairs ===


def test_segments_are_consecutive_and_half_of_them_swapped():
    pairs = list(data.segment_pairs(documents(2000), 32, "sop", np.random.default_rng(1)))
    for pair in pairs:
        (first_document,), first = origin(pair.first)
        (second_document,), second = origin(pair.second)
        assert first_document == second_document == pair.documents[0] + 1 == pair.documents[1] + 1
        earlier, later = (second, first) if pair.label else (first, second)
        assert [*earlier, *later] == list(range(earlier[0], later[-1] + 1))
        assert all(tokens[0] % 1000 == 0 for tokens in (pair.first, pair.second))
    share = np.mean([pair.label for pair in pairs])
    assert len(pairs) > 2000 and abs(share - 0.5) < 4 * 0.5 / np.sqrt(len(pairs))


def test_strangers_are_of_other_documents_and_what_they_displace_is_used_again():
    texts = documents(2000)
    pairs = list(data.segment_pairs(texts, 32, "nsp", np.random.default_rng(1)))
    for pair in pairs:
        (first_document,), first = origin(pair.first)
        (second_document,), second = origin(pair.second)
        assert (first_document != second_document) == pair.label
        if not pair.label:
            assert second[0] == first[-1] + 1
    share = np.mean([pair.label for pair in pairs])
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(len(pairs))
    # First segments, and the seconds that follow them, are each document from its beginning, without gap or repetition
    used = {}
    for pair in pairs:
        spans = [pair.sentences[0]] if pair.label else list(pair.sentences)
        used.setdefault(pair.documents[0], []).extend(spans)
    for index, spans in used.items():
        assert spans[0][0] == 0 and all(a[1] == b[0] for a, b in itertools.pairwise(spans))
        assert len(texts[index]) - spans[-1][1] <= 1


def test_with_two_documents_a_stranger_is_of_the_other():
    texts, rng = documents(2), np.random.default_rng(1)
    pairs = [pair for _ in range(200) for pair in data.segment_pairs(texts, 32, "nsp", rng)]
    assert {pair.documents for pair in pairs if pair.label} == {(0, 1), (1, 0)}
    assert {pair.documents for pair in pairs if not pair.label} == {(0, 0), (1, 1)}


def test_without_a_sentence_loss_segments_follow_each_other():
    pairs = list(data.segment_pairs(documents(), 32, "none", np.random.default_rng(1)))
    assert not any(pair.label for pair in pairs)
    assert all(pair.sentences[0][1] == pair.sentences[1][0] for pair in pairs)


def test_a_tenth_of_the_chunks_is_short():
    texts = [[np.arange(4)] * 10 for _ in range(4000)]
    pairs = data.segment_pairs(texts, 43, "none", np.random.default_rng(1))
    first = {pair.documents[0]: pair for pair in reversed(list(pairs))}
    short = np.mean([len(pair.first) + len(pair.second) < 40 for pair in first.values()])
    # Of the random targets, 2 to 40, those over 36 take all ten sentences too
    expected = 0.1 * (1 - 4 / 39)
    assert len(first) == 4000 and abs(short - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)


def test_a_first_sentence_of_the_whole_length_takes_the_next_one_too():
    texts = [[np.arange(40), np.arange(40), np.arange(4)]]
    pairs = list(data.segment_pairs(texts, 32, "none", np.random.default_rng(1), short_rate=0.0))
    assert [pair.sentences for pair in pairs] == [((0, 1), (1, 2))]


def test_cuts_are_uniform():
    texts = [[np.arange(4)] * 5 for _ in range(4000)]
    pairs = list(data.segment_pairs(texts, 23, "none", np.random.default_rng(1), short_rate=0.0))
    counts = np.bincount([pair.sentences[0][1] for pair in pairs], minlength=5)[1:]
    assert counts.sum() == 4000 and np.abs(counts - 1000).max() < 4 * np.sqrt(4000 * 0.25 * 0.75)


@given(first=st.integers(1, 40), second=st.integers(1, 40), room=st.integers(2, 50), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_trimming_equals_a_loop_token_by_token(first, second, room, seed):
    lengths = [first, second]
    while sum(lengths) > room:
        lengths[0 if lengths[0] > lengths[1] else 1] -= 1
    found = data.trim(np.arange(first), np.arange(second), room, np.random.default_rng(seed))
    assert [len(part) for part in found] == lengths and min(lengths) >= 1
    assert all((np.diff(part) == 1).all() for part in found)


def test_trimming_takes_from_both_ends():
    rng = np.random.default_rng(0)
    starts = np.array([data.trim(np.arange(20), np.arange(0), 10, rng)[0][0] for _ in range(2000)])
    assert abs(starts.mean() - 5) < 4 * np.sqrt(2.5 / 2000) and starts.min() < 2 < 8 < starts.max()


def test_sequences_are_framed_and_padded():
    pair = data.Pair(np.array([10, 11]), np.array([12]), 1, (0, 0), ((1, 2), (0, 1)))
    found = data.join([pair], 8, IDS, np.random.default_rng(0))
    assert found["token_ids"].tolist() == [[2, 10, 11, 3, 12, 3, 0, 0]]
    assert found["segment_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]]
    assert found["padding_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert found["sentence_label"].tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([], 32, "sop"), "`documents` must be at least"),
        ((documents(1), 32, "nsp"), "`documents` must be at least two"),
        ((documents(3), 4, "sop"), "`length` must be at least 5"),
        ((documents(3), 32, "order"), "`sentence_loss` must be one of"),
    ],
)
def test_bad_documents_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        next(data.segment_pairs(*arguments, np.random.default_rng(0)))


# === Masks ===


def sequences(count=2500, length=40, rng=3):
    rng = np.random.default_rng(rng)
    pairs = [
        data.Pair(rng.integers(5, SIZE, rng.integers(1, 24)), rng.integers(5, SIZE, rng.integers(1, 24)), 0, (0, 0), ())
        for _ in range(count)
    ]
    return data.join(pairs, length, IDS, rng)


def test_lengths_of_spans_are_drawn_as_one_over_n():
    rng = np.random.default_rng(0)
    inner = np.concatenate([data.ngram_lengths(30, 3, rng)[:-2] for _ in range(2000)])
    shares = np.bincount(inner, minlength=4)[1:] / len(inner)
    for share, expected in zip(shares, (6 / 11, 3 / 11, 2 / 11), strict=True):
        assert abs(share - expected) < 3 * np.sqrt(expected * (1 - expected) / len(inner))
    ends = np.array([data.ngram_lengths(2, 3, rng) for _ in range(4000)])
    assert (ends[:, 1] == 1).all()
    assert abs((ends[:, 0] == 1).mean() - 2 / 3) < 3 * np.sqrt(2 / 9 / 4000)


@pytest.mark.parametrize("max_ngram", [1, 3])
def test_whole_words_within_the_budget_are_masked(max_ngram):
    made = sequences()
    before = made["token_ids"]
    inputs, targets = data.mask_tokens(made, IDS, SIZE, 20, np.random.default_rng(4), STARTS, max_ngram)
    assert len(before) >= 2000
    budgets = [data.masking_budget(int(mask.sum()), 20) for mask in made["padding_mask"]]
    # Only a word longer than what is left of the budget leaves some of it
    assert targets["mask_weights"].sum() > 0.99 * sum(budgets)
    assert (targets["mask_weights"].sum(axis=1) == 0).mean() < 0.01
    for row in range(len(before)):
        places = inputs["mask_positions"][row][targets["mask_weights"][row] == 1]
        length = int(made["padding_mask"][row].sum())
        assert len(set(places)) == len(places) <= max(1, round(0.15 * length))
        assert not set(before[row, places]) & {0, 2, 3} and (places < length).all()
        np.testing.assert_array_equal(targets["mask_ids"][row][: len(places)], before[row, places])
        for place in places:
            # The piece that begins the word, and all that go on with it, are masked with it
            start = place
            while not STARTS[before[row, start]] and before[row, start - 1] not in (2, 3):
                start -= 1
            end = place + 1
            while end < length and not STARTS[before[row, end]] and before[row, end] != 3:
                end += 1
            assert set(range(start, end)) <= set(places)
    untouched = np.ones(before.shape, bool)
    np.put_along_axis(untouched, inputs["mask_positions"], False, axis=1)
    np.testing.assert_array_equal(inputs["token_ids"][untouched], before[untouched])


def test_masked_tokens_are_replaced_80_10_10():
    made = sequences()
    inputs, targets = data.mask_tokens(made, IDS, SIZE, 20, np.random.default_rng(4), STARTS, 3)
    real = targets["mask_weights"] == 1
    shown = np.take_along_axis(inputs["token_ids"], inputs["mask_positions"], axis=1)[real]
    original, count = targets["mask_ids"][real], real.sum()
    # A random token is the mask, or the token itself, once in SIZE
    for found, expected in (
        ((shown == IDS.mask).mean(), 0.8 + 0.1 / SIZE),
        ((shown == original).mean(), 0.1 + 0.1 / SIZE),
        (((shown != IDS.mask) & (shown != original)).mean(), 0.1 * (1 - 2 / SIZE)),
    ):
        assert abs(found - expected) < 3 * np.sqrt(expected * (1 - expected) / count)
    others = shown[(shown != IDS.mask) & (shown != original)]
    assert set(others) == set(range(SIZE)) - {IDS.mask}


def test_random_tokens_are_drawn_from_the_whole_vocabulary_alike():
    constant, chosen = np.full((100, 1000), 7), np.ones((100, 1000), bool)
    found = data.corrupt(constant, chosen, IDS.mask, SIZE, np.random.default_rng(4))
    counts = np.delete(np.bincount(found.ravel(), minlength=SIZE), [7, IDS.mask])
    expected = 0.1 * found.size / SIZE
    # Four deviations of a chi-square distribution
    freedom = len(counts)
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 4 * np.sqrt(2 * freedom)


def test_pieces_are_masked_one_by_one_where_words_do_not_matter():
    made = sequences(400)
    _, targets = data.mask_tokens(made, IDS, SIZE, 20, np.random.default_rng(4))
    budgets = [data.masking_budget(int(mask.sum()), 20) for mask in made["padding_mask"]]
    assert targets["mask_weights"].sum(axis=1).tolist() == budgets
    assert data.masking_budget(512, 20) == 20 and data.masking_budget(3, 20) == 1 and data.masking_budget(50, 20) == 8


def test_spans_do_not_overlap_and_are_shortened_to_the_budget():
    units = list(np.arange(12)[:, None])
    for seed in range(200):
        found = data.choose_positions(units, 2, 3, np.random.default_rng(seed))
        assert len(found) == len(set(found)) == 2
    wide = [np.arange(5), np.arange(5, 6)]
    assert all(data.choose_positions(wide, 3, 3, np.random.default_rng(s)).tolist() == [5] for s in range(20))
    assert data.choose_positions([np.arange(5)], 3, 3, np.random.default_rng(0)).tolist() == []


# === Tokenizers ===


def test_words_begin_where_the_tokenizer_says():
    wordpiece = load_tokenizer(docstrings.tokenizer_json())
    starts, pieces = word_starts(wordpiece), wordpiece.get_vocab()
    assert all(starts[index] == (not piece.startswith("##")) for piece, index in pieces.items())
    unigram = Tokenizer(models.Unigram([("[UNK]", 0.0), ("▁the", -1.0), ("s", -2.0), (",", -2.0), ("5", -2.0)], 0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    assert word_starts(unigram)[1:].tolist() == [True, False, True, False]


@pytest.mark.parametrize("model", ["wordpiece", "unigram", "bpe"])
def test_tokenizers_are_trained_framed_and_the_same_again(model):
    texts = load_arrays("docstrings", "test")["text"].tolist()[:60]
    content = train_tokenizer(texts, 400, model)
    tokenizer = load_tokenizer(content)
    assert tokenizer.get_vocab_size() == 400
    assert [tokenizer.id_to_token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    encoding = tokenizer.encode("The Mean", "of x")
    assert encoding.tokens[0] == "[CLS]" and encoding.tokens.count("[SEP]") == 2
    assert encoding.type_ids == sorted(encoding.type_ids) and set(encoding.type_ids) == {0, 1}
    assert tokenizer.decode(tokenizer.encode("the mean of x").ids) == "the mean of x"
    if model == "wordpiece":
        assert train_tokenizer(texts, 400, model) == content


def test_tokenizers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="`model` must be one of"):
        train_tokenizer(["a b"], 400, "characters")
    with pytest.raises(ValueError, match=r"`vocabulary_size` must be what the texts give, \d+\. Received: 400"):
        train_tokenizer(["a b"], 400)


# === The corpus ===


def test_docstrings_are_split_by_file_and_have_several_lines():
    splits = {name: load_arrays("docstrings", name) for name in ("train", "validation", "test")}
    files = {name: set(arrays["module"]) for name, arrays in splits.items()}
    assert not (
        files["train"] & files["test"] or files["train"] & files["validation"] or files["validation"] & files["test"]
    )
    texts = [text for arrays in splits.values() for text in arrays["text"]]
    assert len(set(texts)) == len(texts) and all(len(text) > 300 and "\n" in text for text in texts)
    assert {file.partition("/")[0] for part in files.values() for file in part} == {
        "keras",
        "numpy",
        "scipy",
        "sklearn",
    }


def test_batches_are_the_same_for_the_same_seed_and_new_in_each_pass():
    tokenizer = docstrings.tokenizer_json()
    texts = data.load_documents(tokenizer, "docstrings", "test")[:20]
    masking = data.Masking(32, 5, "sop", 3)
    first, again, other = (data.training_batches(tokenizer, texts, masking, 8, seed) for seed in (1, 1, 2))
    taken = [next(first) for _ in range(200)]
    for inputs, targets in taken[:20]:
        same_inputs, same_targets = next(again)
        assert all((inputs[key] == same_inputs[key]).all() for key in inputs)
        assert all((targets[key] == same_targets[key]).all() for key in targets)
    assert not (taken[0][0]["token_ids"] == next(other)[0]["token_ids"]).all()
    rows = [row.tobytes() for inputs, _ in taken for row in inputs["token_ids"]]
    assert len(set(rows)) > 0.9 * len(rows)


def test_held_out_examples_are_the_same_each_time_and_not_of_the_training():
    tokenizer = docstrings.tokenizer_json()
    arguments = (tokenizer, "docstrings", "test", "sop", 64, 10)
    inputs, targets = data.held_out_examples(*arguments)
    data.held_out_examples.cache_clear()
    again, _ = data.held_out_examples(*arguments)
    assert all((inputs[key] == again[key]).all() for key in inputs)
    assert len(inputs["token_ids"]) == 2000 and 0.4 < targets["sentence_label"].mean() < 0.6
    assert targets["mask_weights"].sum(axis=1).max() <= 10
