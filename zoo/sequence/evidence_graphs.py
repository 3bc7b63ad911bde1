"""Linked texts as arrays: claims with their evidence, questions with hyperlinked documents.

A graph is a set of short token sequences, its nodes, with directed edges. Arrays of a batch of graphs are padded to a number
of nodes and a length: `token_ids`, `segment_ids`, `padding_mask` `(batch, nodes, length)`, `adjacency` `(batch, nodes,
nodes)`, where entry (t, s) says that node t receives from node s, and `node_mask` `(batch, nodes)`; all int32.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from zoo.arguments import require
from zoo.model import Arrays

Edge = tuple[int, int]
# A title and sentences.
Document = tuple[str, Sequence[str]]
# A piece of a node's text: token ids and their segment.
Piece = tuple[list[int], int]

PADDING, START, SEPARATOR = "[PAD]", "[CLS]", "[SEP]"
PLACEHOLDER = "@"
# Marks nodes and positions that a loss leaves out.
IGNORED = -1


# === Words and placeholders of names ===


def word_tokenizer(words: Sequence[str], num_placeholders: int) -> bytes:
    """Builds a tokenizer of whole words, in which names are placeholders `@0`, `@1`, ...

    Names are numbered as they appear, so that what a model learns holds for names it has never seen.

    Args:
        words: sequence of str. Every word that is not a name.
        num_placeholders: int. Names that one graph may hold.

    Returns:
        The content of a `tokenizer.json`.
    """
    names = [f"{PLACEHOLDER}{index}" for index in range(num_placeholders)]
    tokens = [PADDING, START, SEPARATOR, *words, *names]
    require(len(set(tokens)) == len(tokens), "words", "distinct, and no special tokens", list(words))
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str().encode()


def placeholder_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Returns the ids of all placeholders, in order; empty for a tokenizer of another kind."""
    ids = []
    while (found := tokenizer.token_to_id(f"{PLACEHOLDER}{len(ids)}")) is not None:
        ids.append(found)
    return np.array(ids, "int32")


def replace_names(texts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Replaces words that a tokenizer of whole words does not have by placeholders, the same in all texts of a graph.

    Args:
        texts: sequence of str.
        tokenizer: a `Tokenizer`; one without placeholders leaves the texts as they are.

    Returns:
        List of str.

    Raises:
        ValueError: for more names than placeholders.
    """
    number = len(placeholder_ids(tokenizer))
    if not number:
        return list(texts)
    names: dict[str, str] = {}
    replaced = []
    for text in texts:
        words = [
            word if tokenizer.token_to_id(word) is not None else names.setdefault(word, f"{PLACEHOLDER}{len(names)}")
            for word in text.split()
        ]
        replaced.append(" ".join(words))
    require(len(names) <= number, "texts", f"of at most {number} different names", f"{len(names)}: {list(names)}")
    return replaced


# === Graphs ===


def adjacency_matrix(edges: Iterable[Edge], num_nodes: int) -> np.ndarray:
    """Returns directed edges as a matrix.

    Args:
        edges: iterable of pairs `(source, target)`.
        num_nodes: int. Nodes of the graph.

    Returns:
        int32 array `(num_nodes, num_nodes)`: entry (target, source) is 1.

    Raises:
        ValueError: for an edge from or to a node that does not exist.
    """
    matrix = np.zeros((num_nodes, num_nodes), "int32")
    for edge in edges:
        require(
            all(0 <= node < num_nodes for node in edge),
            "edges",
            f"pairs of node numbers from 0 to {num_nodes - 1}",
            tuple(edge),
        )
        source, target = edge
        matrix[target, source] = 1
    return matrix


def fully_connected(num_nodes: int) -> list[Edge]:
    """Returns the edges between all pairs of nodes, in both directions, without self-loops."""
    return [(source, target) for source in range(num_nodes) for target in range(num_nodes) if source != target]


def pack_graph(
    nodes: Sequence[Sequence[Piece]], edges: Iterable[Edge], padding_id: int, num_nodes: int, length: int
) -> Arrays:
    """Packs one graph into arrays without the batch axis.

    Args:
        nodes: sequence of nodes, each a sequence of pieces. What is longer than `length` is cut off.
        edges: iterable of pairs `(source, target)`.
        padding_id: int. Token of the padding.
        num_nodes: int. Nodes that the graph is padded to.
        length: int. Tokens that each node is padded to.

    Returns:
        Dict of the five arrays.

    Raises:
        ValueError: for a graph without nodes or with too many, and for edges of nodes that do not exist.
    """
    require(1 <= len(nodes) <= num_nodes, "nodes", f"1 to {num_nodes}", len(nodes))
    arrays = {name: np.zeros((num_nodes, length), "int32") for name in ("token_ids", "segment_ids", "padding_mask")}
    arrays["token_ids"] += padding_id
    for row, pieces in enumerate(nodes):
        ids = [index for piece, _ in pieces for index in piece][:length]
        segments = [segment for piece, segment in pieces for _ in piece][:length]
        arrays["token_ids"][row, : len(ids)] = ids
        arrays["segment_ids"][row, : len(ids)] = segments
        arrays["padding_mask"][row, : len(ids)] = 1
    adjacency = np.zeros((num_nodes, num_nodes), "int32")
    adjacency[: len(nodes), : len(nodes)] = adjacency_matrix(edges, len(nodes))
    return {**arrays, "adjacency": adjacency, "node_mask": (np.arange(num_nodes) < len(nodes)).astype("int32")}


def stack_graphs(graphs: Sequence[Arrays]) -> Arrays:
    """Returns graphs of equal sizes as one batch."""
    return {name: np.stack([graph[name] for graph in graphs]) for name in graphs[0]}


# === Claims and their evidence ===


def claim_graph(
    tokenizer: Tokenizer,
    claim: str,
    evidence: Sequence[Document],
    edges: Iterable[Edge],
    num_nodes: int,
    length: int,
) -> Arrays:
    """Makes the graph of a claim: a node for each piece of evidence.

    A node reads `[CLS] claim [SEP] title [SEP] sentence [SEP]`, the claim in segment 0 and the rest in segment 1.

    Args:
        tokenizer: a `Tokenizer` with `[PAD]`, `[CLS]` and `[SEP]`; names become placeholders if it has any.
        claim: str.
        evidence: sequence of pairs of a page's title and sentences from it.
        edges: iterable of pairs `(source, target)`, such as `fully_connected` (the paper's choice) or `mention_edges`.
        num_nodes: int. Nodes that the graph is padded to.
        length: int. Tokens that a node is padded to or cut off at.

    Returns:
        Dict of the five arrays, without a batch axis.

    Raises:
        ValueError: for no evidence or too much, edges of evidence that does not exist, an empty text, or a claim that
            leaves no place for evidence.

    Reference:
        Zhao et al. 2020, section 4.2.
    """
    parts = [(title, *sentences) for title, sentences in evidence]
    texts = replace_names([claim, *(text for part in parts for text in part)], tokenizer)
    tokens = iter(_encode(tokenizer, texts))
    start, separator = ([tokenizer.token_to_id(token)] for token in (START, SEPARATOR))
    first = start + next(tokens) + separator
    require(len(first) < length, "claim", f"shorter than {length - 2} tokens", f"{claim!r}, {len(first) - 2} tokens")
    nodes = [[(first, 0), *((next(tokens) + separator, 1) for _ in part)] for part in parts]
    return pack_graph(nodes, edges, tokenizer.token_to_id(PADDING), num_nodes, length)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    for text in texts:
        require(bool(text.strip()), "texts", "not empty", repr(text))
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


# === Questions and linked documents ===


def mention_edges(documents: Sequence[Document]) -> list[Edge]:
    """Links every document to those whose title it mentions, as hyperlinks of an encyclopedia do.

    Args:
        documents: sequence of pairs of a title and sentences.

    Returns:
        List of pairs `(source, target)`.
    """
    texts = [_words(" ".join(sentences)) for _, sentences in documents]
    names = [_name(title) for title, _ in documents]
    return [
        (source, target)
        for source, text in enumerate(texts)
        for target, name in enumerate(names)
        if source != target and name in text
    ]


def mentions(sentence: str, title: str) -> bool:
    """Returns whether a sentence holds a title as whole words, without what the title has in parentheses."""
    return _name(title) in _words(sentence)


def _name(title: str) -> str:
    return _words(title.split(" (")[0])


def _words(text: str) -> str:
    """Returns the words of a text between single spaces, without punctuation."""
    words = re.findall(r"[\w-]+", text)
    return f" {' '.join(words)} "


def question_graph(
    tokenizer: Tokenizer,
    question: str,
    documents: Sequence[Document],
    edges: Sequence[Edge],
    num_nodes: int,
    length: int,
    answer: str | None = None,
    answer_documents: Sequence[int] = (),
) -> tuple[Arrays, Arrays]:
    """Makes the graph of a question: a node for each document, an edge for each hyperlink.

    A node reads `[CLS] question [SEP] anchor [SEP] ... document [SEP]`: anchors are the sentences of linking documents that
    mention this one. Segment 1 is the document alone.

    Args:
        tokenizer: a `Tokenizer` with `[PAD]`, `[CLS]` and `[SEP]`.
        question: str.
        documents: sequence of pairs of a title and sentences.
        edges: sequence of pairs `(source, target)` of documents.
        num_nodes: int. Nodes that the graph is padded to.
        length: int. Tokens that a node is padded to or cut off at.
        answer: str or None. The text to find.
        answer_documents: sequence of int. Documents that answer the question.

    Returns:
        Tuple of the five arrays and of labels, without a batch axis: `node_labels` `(nodes,)` (1 for an answer, -1 for
        padding, and everywhere if there is no answer text), `start_positions` and `end_positions` `(nodes,)` (-1 where
        the answer is not in sight).

    Raises:
        ValueError: for no documents or too many, an empty text, or numbers of documents that do not exist.

    Reference:
        Zhao et al. 2020, section 4.1.
    """
    count = len(documents)
    require(all(0 <= node < count for node in answer_documents), "answer_documents", f"below {count}", answer_documents)
    links = np.argwhere(adjacency_matrix(edges, count))
    anchors: list[list[str]] = [[] for _ in documents]
    for target, source in links:
        title = documents[target][0]
        anchors[target] += [sentence for sentence in documents[source][1] if mentions(sentence, title)]
    start, separator = ([tokenizer.token_to_id(token)] for token in (START, SEPARATOR))
    asked = start + _encode(tokenizer, [question])[0] + separator
    nodes, begins = [], []
    for (_, sentences), sources in zip(documents, anchors, strict=True):
        before = [(ids + separator, 0) for ids in _encode(tokenizer, sources)]
        body = _encode(tokenizer, [" ".join(sentences)])[0] + separator
        nodes.append([(asked, 0), *before, (body, 1)])
        begins.append(len(asked) + sum(len(ids) for ids, _ in before))
    arrays = pack_graph(nodes, edges, tokenizer.token_to_id(PADDING), num_nodes, length)
    labels = {
        name: np.full(num_nodes, IGNORED, "int32") for name in ("node_labels", "start_positions", "end_positions")
    }
    if answer is not None:
        labels["node_labels"][:count] = 0
        labels["node_labels"][list(answer_documents)] = 1
        wanted = _encode(tokenizer, [answer])[0]
        for row, begin in enumerate(begins):
            found = _find(nodes[row][-1][0], wanted)
            if found is not None and begin + found + len(wanted) <= length:
                labels["start_positions"][row] = begin + found
                labels["end_positions"][row] = begin + found + len(wanted) - 1
    return arrays, labels


def _find(ids: list[int], wanted: list[int]) -> int | None:
    places = range(len(ids) - len(wanted) + 1)
    return next((place for place in places if ids[place : place + len(wanted)] == wanted), None)
