"""Documents: those that lm-eval ships, and those of files."""

import json
from pathlib import Path

import pytest

from lit_rerank.errors import UserError
from lit_rerank.general_text import Document, DocumentsSource, open_documents, shipped_documents


def test_shipped_documents_are_prose_without_what_all_have_in_common() -> None:
    documents = shipped_documents()
    assert len(documents) == len({document.id for document in documents}) == 57
    assert sum(document.bytes for document in documents) == 68621
    for document in documents:
        assert "Let's think step by step" not in document.text
        assert "We refer to Wikipedia" not in document.text
        assert "The answer is (" not in document.text


def test_files_are_read_by_lines_or_by_paragraphs(tmp_path: Path) -> None:
    lines, paragraphs = tmp_path / "t.jsonl", tmp_path / "t.txt"
    lines.write_text(json.dumps({"text": "Fleas\n\nlive."}) + "\n" + json.dumps({"text": "où?"}) + "\n")
    assert list(DocumentsSource(lines)) == [Document("Fleas\n\nlive."), Document("où?")]
    assert Document("où?").bytes == 4
    paragraphs.write_text("\n\nFleas\nlive.\n \t\n\n\nParis.\r\n\r\nBerlin.\n", newline="")
    assert list(DocumentsSource(paragraphs)) == [Document("Fleas\nlive."), Document("Paris."), Document("Berlin.")]
    assert open_documents(str(paragraphs), 1) == [Document("Fleas\nlive.")]
    assert open_documents(None) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"text": "a"}\n{"text": " "}\n', r"t\.jsonl:2: a document is empty"),
        ("t.jsonl", b'{"body": "a"}\n', '"text" is missing'),
        ("t.txt", b"Fleas.\n\nPar\xff\n", r"t\.txt: paragraph 2: not UTF-8: byte 4"),
        ("t.txt", b"\n \n", "holds no text"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_documents(str(tmp_path / name))
