"""Readers of HotpotQA and FEVER, on small files of the official formats."""

import json

import pytest

from zoo.datasets import fever, hotpotqa, list_datasets

QUESTIONS = [
    {
        "_id": "5a7a06935542990198eaf050",
        "answer": "Arthur's Magazine",
        "question": "Which magazine was started first Arthur's Magazine or First for Women?",
        "supporting_facts": [["Arthur's Magazine", 0], ["First for Women", 0]],
        "context": [
            ["Radio City (Indian radio station)", ["Radio City is India's first private FM radio station."]],
            ["Arthur's Magazine", ["Arthur's Magazine (1844–1846) was an American periodical.", " It was merged."]],
            ["First for Women", ["First for Women is a woman's magazine.", " It was started in 1989."]],
        ],
        "type": "comparison",
        "level": "medium",
    },
    {"_id": "2", "answer": "yes", "question": "Is it?", "supporting_facts": [["A", 0]], "context": [["A", ["yes"]]]},
    # Test files have neither answers nor supporting facts.
    {"_id": "3", "question": "Who?", "context": []},
]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "hotpot_dev.json"
    path.write_text(json.dumps(QUESTIONS), encoding="utf-8")
    return path


def test_questions(questions):
    first, second, third = hotpotqa.read(questions)

    assert (first.id, first.answer) == ("5a7a06935542990198eaf050", "Arthur's Magazine")
    assert first.documents[2] == (
        "First for Women",
        ("First for Women is a woman's magazine.", " It was started in 1989."),
    )
    assert first.supporting_facts == (("Arthur's Magazine", 0), ("First for Women", 0))
    assert (first.span, first.answer_documents) == ("Arthur's Magazine", [1])
    assert (second.answer, second.span, second.answer_documents) == ("yes", None, [])
    assert (third.answer, third.documents, third.supporting_facts) == (None, (), ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", r"must be a JSON file of HotpotQA. Received: .*hotpot.json"),
        ("{}", r"must hold a list of questions. Received: .*with a dict"),
        ('[{"_id": "1", "question": "Who?"}]', r"`context`.*Received: .*entry 0, KeyError: 'context'"),
        ('[{"_id": "1", "question": "Who?", "context": [["A"]]}]', r"Received: .*entry 0, ValueError"),
        ('[{"_id": "1", "question": "Who?", "context": [["A", [3]]]}]', r"must be strings. Received: .*entry 0"),
        ('["Who?"]', r"Received: .*entry 0, TypeError"),
    ],
)
def test_other_questions_are_refused(content, message, tmp_path):
    path = tmp_path / "hotpot.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        hotpotqa.read(path)


CLAIMS = """\
{"id": 75397, "verifiable": "VERIFIABLE", "label": "SUPPORTS", "claim": "Nikolaj Coster-Waldau worked with Fox.", \
"evidence": [[[92206, 104971, "Nikolaj_Coster-Waldau", 7], [92206, 104971, "Fox_Broadcasting_Company", 0]], \
[[92207, 104972, "Nikolaj_Coster-Waldau", 7]]]}
{"id": 137334, "verifiable": "NOT VERIFIABLE", "label": "NOT ENOUGH INFO", "claim": "Fox 2000 releases Soul Food.", \
"evidence": [[[108548, null, null, null]]]}

{"id": 7, "claim": "A test claim."}
"""
PAGES = [
    {"id": "", "text": "", "lines": ""},
    {
        "id": "Fox_Broadcasting_Company",
        "text": "The Fox Broadcasting Company is a network . It is American .",
        "lines": (
            "0\tThe Fox Broadcasting Company is a network .\tnetwork\tTelevision network\n1\t\n2\tIt is American .\nrest"
        ),
    },
    {"id": "Other", "text": "Other .", "lines": "0\tOther ."},
]


@pytest.fixture
def claims(tmp_path):
    path = tmp_path / "dev.jsonl"
    path.write_text(CLAIMS, encoding="utf-8")
    return path


def test_claims(claims):
    first, second, third = fever.read_claims(claims)

    assert (first.id, first.label) == (75397, "SUPPORTS")
    assert first.evidence_sets[0] == (("Nikolaj_Coster-Waldau", 7), ("Fox_Broadcasting_Company", 0))
    assert first.evidence == [("Nikolaj_Coster-Waldau", 7), ("Fox_Broadcasting_Company", 0)]
    assert (second.label, second.evidence_sets, second.evidence) == ("NOT ENOUGH INFO", (), [])
    assert (third.label, third.evidence) == (None, [])


def test_pages(tmp_path):
    (tmp_path / "wiki-001.jsonl").write_text("\n".join(map(json.dumps, PAGES)), encoding="utf-8")

    pages = fever.read_pages(tmp_path, ["Fox_Broadcasting_Company", "Absent"])

    sentences = {0: "The Fox Broadcasting Company is a network .", 2: "It is American ."}
    assert pages == {"Fox_Broadcasting_Company": sentences}


def test_titles_are_readable():
    title = "The_Ten_Commandments_-LRB-1956_film-RRB-"
    assert fever.readable(title) == "The Ten Commandments (1956 film)"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1', r"JSON lines.*Received: .*line 1"),
        ('{"claim": "A."}', r"Received: .*line 1, KeyError: 'id'"),
        ('{"id": 1, "claim": "A.", "evidence": [[[1, 2, "Page"]]]}', r"Received: .*line 1, ValueError"),
        ('{"id": 1, "claim": "A.", "label": "MAYBE"}', r"`label` must be one of .* Received: .*line 1, 'MAYBE'"),
        ("[1]", r"Received: .*line 1, AttributeError"),
    ],
)
def test_other_claims_are_refused(line, message, tmp_path):
    path = tmp_path / "claims.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=message):
        fever.read_claims(path)


def test_other_pages_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"files such as wiki-001.jsonl. Received: "):
        fever.read_pages(tmp_path, ["A"])
    (tmp_path / "wiki-001.jsonl").write_text('{"id": "A"}\n')
    with pytest.raises(ValueError, match=r"`id` and `lines`.*Received: .*line 1, KeyError: 'lines'"):
        fever.read_pages(tmp_path, ["A"])


def test_readers_are_no_datasets_of_the_registry():
    assert not {"hotpotqa", "fever"} & set(list_datasets())
