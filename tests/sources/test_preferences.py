"""Ready-made preference pairs."""

from pathlib import Path

import pytest

from data_modules.sources import PairsSource, PreferencePair
from lit_rerank.errors import UserError
from tests.sources.lines import Row, write_lines

MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "U\x85\u2028"}]


def answer(content: str, role: str = "assistant") -> list[Row]:
    return [{"role": role, "content": content}]


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"prompt": "P", "chosen": "C", "rejected": "R"}, PreferencePair("P", "C", "R")),
        ({"prompt": MESSAGES, "chosen": "C", "rejected": "R"}, PreferencePair(MESSAGES, "C", "R")),
        ({"prompt": MESSAGES, "chosen": answer("C"), "rejected": answer("R")}, PreferencePair(MESSAGES, "C", "R")),
        ({"prompt": "P", "chosen": answer("C"), "rejected": ""}, PreferencePair("P", "C", "")),
    ],
)
def test_layouts(row: Row, pair: PreferencePair, tmp_path: Path) -> None:
    assert list(PairsSource(write_lines(tmp_path / "data.jsonl", row))) == [pair]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ["x"], "chosen": "C", "rejected": "R"}, "\"prompt\", item 1: must be a JSON object, not 'x'"),
        ({"prompt": "P", "chosen": answer("C") * 2, "rejected": "R"}, '"chosen" must hold exactly one message'),
        ({"prompt": "P", "chosen": "C", "rejected": answer("R", "user")}, '"rejected" must hold exactly one message'),
        ({"prompt": "P", "chosen": answer("C"), "rejected": "C"}, "chosen and rejected are the same"),
    ],
)
def test_broken_layouts(row: Row, message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", row)
    with pytest.raises(UserError) as raised:
        list(PairsSource(path))
    assert str(raised.value).startswith(f"{path}:1: {message}")
