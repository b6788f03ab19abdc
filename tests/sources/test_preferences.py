"""Ready-made preference pairs."""

import json
from pathlib import Path

import pytest

from data_modules.sources import PairsSource, PreferencePair
from lit_rerank.errors import UserError
from tests.sources.lines import Row, write_lines

MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "U\x85\u2028"}]


IMPLICIT = PreferencePair(MESSAGES, "C", "R")
SKY = PreferencePair("The sky is", " blue.", " green.")


def answer(content: str, role: str = "assistant") -> list[Row]:
    return [{"role": role, "content": content}]


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"prompt": "P", "chosen": "C", "rejected": "R"}, PreferencePair("P", "C", "R")),
        ({"prompt": MESSAGES, "chosen": "C", "rejected": "R"}, PreferencePair(MESSAGES, "C", "R")),
        ({"prompt": MESSAGES, "chosen": answer("C"), "rejected": answer("R")}, PreferencePair(MESSAGES, "C", "R")),
        ({"prompt": "P", "chosen": answer("C"), "rejected": ""}, PreferencePair("P", "C", "")),
        ({"prompt": "P", "chosen": [*MESSAGES, *answer("C")], "rejected": [*MESSAGES, *answer("R")]}, IMPLICIT),
        ({"chosen": [*MESSAGES, *answer("C")], "rejected": [*MESSAGES, *answer("R")]}, IMPLICIT),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, SKY),
        ({"chosen": "The sky", "rejected": "The sky is"}, PreferencePair("The sky", "", " is")),
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
        (
            {"chosen": answer("C"), "rejected": answer("R")},
            'there is no "prompt", and chosen and rejected do',
        ),
        ({"chosen": "C", "rejected": "R"}, 'there is no "prompt", and chosen and rejected do'),
        ({"chosen": answer("C"), "rejected": answer("C")}, "chosen and rejected are the same"),
        ({"chosen": "C", "rejected": "C"}, "chosen and rejected are the same"),
        ({"chosen": [*MESSAGES, *answer("C")], "rejected": MESSAGES}, '"rejected" must hold exactly one message'),
        ({"chosen": [*MESSAGES, *answer("C") * 2], "rejected": [*MESSAGES, *answer("R")]}, '"chosen" must hold exac'),
    ],
)
def test_broken_layouts(row: Row, message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", row)
    with pytest.raises(UserError) as raised:
        list(PairsSource(path))
    assert str(raised.value).startswith(f"{path}:1: {message}")


def test_a_json_array_a_parquet_file_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"chosen": [*MESSAGES, *answer("C")], "rejected": [*MESSAGES, *answer("R")]}] * 2
    array = write_lines(tmp_path / "data.json", json.dumps(rows).encode())
    folder = tmp_path / "pairs"
    folder.mkdir()
    datasets.Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    for path in (array, folder / "train.parquet", folder):
        assert list(PairsSource(path)) == [IMPLICIT] * 2


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.parquet does not exist, and is no Hub id such as trl-lib/"):
        PairsSource(tmp_path / "absent.parquet")
    (tmp_path / "data.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"data\.parquet: cannot be loaded"):
        list(PairsSource(tmp_path / "data.parquet"))
