"""What an untaught model makes for itself: its questions, its answers, and its order of passages."""

import gzip
import json
from pathlib import Path

import pytest

from data_modules.catalogue import open_collection
from data_modules.sources import JsonlSource, MessagesSource
from lit_rerank import Reranker
from lit_rerank.errors import UserError
from scripts import self_taught
from scripts.recipes import dtype
from scripts.rows import MODEL

PASSAGES = (
    "Adult cat fleas live for about a hundred days on a dog or a cat, but without blood they starve within a week.",
    "The flea is a small insect without wings that can jump two hundred times the length of its own body.",
    "Paris, on the river Seine, has been the capital of France since the tenth century, but for a few short breaks.",
    "The Loire is the longest river in France: it flows for more than a thousand kilometres to the Atlantic ocean.",
    "Photosynthesis is how green plants turn sunlight, water and carbon dioxide into sugar and into oxygen.",
    "Too short to be asked about.",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("self_taught")
    rows = [{"docid": str(i), "text": text} for i, text in enumerate([*PASSAGES, PASSAGES[0]])]
    (folder / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    self_taught.make(MODEL, folder / "passages.jsonl", folder / "out", asked_about=10, windows=10, size=3, answers=2)
    return folder / "out"


def test_questions_are_about_passages(made: Path) -> None:
    with gzip.open(made / "queries.jsonl.gz", "rt") as file:
        questions = {row["qid"]: row["query"] for row in map(json.loads, file)}
    assert set(questions) <= set("01234")  # neither the short one nor the copy
    assert len(questions) >= 3
    assert all("\n" not in question and not question.endswith("?") for question in questions.values())
    own = {docid: set(PASSAGES[int(docid)].lower().replace(",", "").split()) for docid in questions}
    assert sum(bool(own[docid] & set(q.lower().split())) for docid, q in questions.items()) >= 3


def test_questions_are_a_collection_of_what_they_were_asked_about(made: Path) -> None:
    collection = open_collection(str(made))
    assert set(collection.documents) == set("01234")
    assert collection.qrels == {docid: {docid: 1} for docid in collection.queries}


def test_windows_hold_the_passage_in_the_order_of_likelihood(made: Path) -> None:
    records = list(JsonlSource(made / "windows.jsonl.gz"))
    assert records
    reranker = Reranker.from_pretrained(MODEL, decode="likelihood", max_passage_tokens=60, dtype=dtype())
    for record in records:
        docids = [passage.docid for passage in record.passages]
        assert record.qid in docids
        assert len(docids) == 3
        ranked = reranker.rank(record.query, record.passages)
        assert [docids[i - 1] for i in record.permutation or ()] == [passage.docid for passage in ranked]


def test_chats_and_plain_text_are_to_be_replayed(made: Path) -> None:
    conversations = list(MessagesSource(str(made / "replay.jsonl.gz")))
    texts = [c.messages[0]["content"] for c in conversations if len(c.messages) == 1]
    plain, asking = texts
    assert plain in PASSAGES
    assert asking.startswith(f"Passage: {plain}\nQuestion: ")
    assert not any("<|" in message["content"] for c in conversations for message in c.messages)


def test_an_answer_that_was_not_ended_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = ["how long do fleas live", "what is a lien", "what is the capital of France"]
    monkeypatch.setattr(self_taught, "ANSWER_TOKENS", 1)
    assert self_taught.answered(MODEL, questions) == []
    monkeypatch.setattr(self_taught, "ANSWER_TOKENS", 200)
    ended = self_taught.answered(MODEL, questions)
    assert ended
    assert all(row["messages"][1]["content"] for row in ended)


def test_what_is_there_is_kept(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.glob("*.gz")}
    self_taught.make(MODEL, made.parent / "passages.jsonl", made, asked_about=10, windows=10, size=3, answers=2)
    assert {path: path.stat().st_mtime_ns for path in made.glob("*.gz")} == before


def test_what_another_model_made_is_not_taken_for_ones_own(made: Path) -> None:
    with pytest.raises(
        UserError, match="out holds what another model than other made: remove it, or name another folder"
    ):
        self_taught.make("other", made.parent / "passages.jsonl", made, asked_about=10, windows=10)
    (made.parent / "older").mkdir()
    (made.parent / "older" / "queries.jsonl.gz").touch()  # nobody knows by which
    with pytest.raises(UserError, match="older holds what another model than"):
        self_taught.make(MODEL, made.parent / "passages.jsonl", made.parent / "older", asked_about=10, windows=10)


def test_what_all_prompts_come_after_is_read_once_and_changes_nothing() -> None:
    prompts = [self_taught.prompt(text) for text in PASSAGES]
    whole = [self_taught.shots() + prompt for prompt in prompts]
    expected = self_taught.continued(MODEL, whole, "questions", 8)
    assert self_taught.continued(MODEL, prompts, "questions", 8, after=self_taught.shots()) == expected


@pytest.mark.parametrize(
    ("written", "question"),
    [
        (" how long do fleas live?\n\nPassage:", "how long do fleas live"),
        (" what is a lien\nPassage", "what is a lien"),
        (" what is the name of the very long river that never comes to an", ""),  # it goes on
        (" lien\nPassage", ""),
        ("\n\n", ""),
    ],
)
def test_a_question_is_one_line(written: str, question: str) -> None:
    assert self_taught.cleaned(written) == question
