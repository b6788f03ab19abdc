"""The adapter that is shipped, and the figures that are expected of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_rerank import Reranker
from lit_rerank.as_trained import load_prompt_settings, load_reading, save_settings
from lit_rerank.encoding import PromptSettings
from lit_rerank.errors import UserError
from lit_rerank.reading import SlidingWindow, Twice
from scripts import check_results, ship_adapter
from scripts.rows import MODEL
from tests.references import save_adapter


def test_an_adapter_is_not_shipped_over_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is what is read"):
        ship_adapter.ship(tmp_path / "adapter", tmp_path / "x" / ".." / "adapter")


def test_the_shipped_adapter_is_small_and_its_figures_are_named() -> None:
    size = sum(file.stat().st_size for file in check_results.ADAPTER.iterdir())
    assert size < 12e6
    weights = load_file(check_results.ADAPTER / "adapter_model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    reranker = Reranker.from_pretrained(MODEL, str(check_results.ADAPTER), dtype="float32")
    first = reranker.rank("how long do fleas live", ["Fleas live for a hundred days.", "Paris is in France."])[0]
    assert first.docid == "0"
    assert check_results.read_expected(check_results.EXPECTED)["bm25.nDCG@10"] > 0.4458


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected.json does not exist"),
        ("{", "expected.json is no JSON: "),
        ('{"acc": 1}', "expected.json must have acc_cloze, answer_logprob, .*: --write makes it anew"),
        ("[]", "expected.json must have "),
    ],
)
def test_expected_figures_are_read_before_any_work(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "expected.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        check_results.read_expected(path)


def test_the_shipped_figures_are_those_expected_or_named(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"bm25.nDCG@10": 0.45, "answer_logprob": -1.4}
    check_results.check({"bm25.nDCG@10": 0.4599, "answer_logprob": -1.4049}, expected)
    assert "all 2 figures are as in results/expected.json" in capsys.readouterr().out
    wrong = {"bm25.nDCG@10": 0.4601, "answer_logprob": float("nan")}
    with pytest.raises(UserError) as error:
        check_results.check(wrong, expected)
    assert str(error.value).split("; ") == [
        "bm25.nDCG@10 is 0.4601, expected 0.4500, tolerance 0.01",
        "answer_logprob is nan, expected -1.4000, tolerance 0.005",
    ]


def test_a_shipped_adapter_is_half_as_large_and_all_but_equal(tiny_model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "run", tmp_path / "shipped"
    save_adapter(tiny_model, source, seed=1)
    save_settings(PromptSettings(max_passage_tokens=60), SlidingWindow(), source)
    target.mkdir()
    (target / "README.md").write_text("a model card")
    ship_adapter.ship(source, target)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (source, target))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert after[name].dtype == torch.bfloat16
        torch.testing.assert_close(after[name].float(), weight, rtol=2**-8, atol=0)
    assert (target / "README.md").read_text() == "a model card"
    assert Reranker.from_pretrained(str(tiny_model), str(target)).reading == SlidingWindow()  # as any adapter
    ship_adapter.ship(source, target, window=8, stride=4, rounds=3)
    assert (load_prompt_settings(target), load_reading(target)) == (load_prompt_settings(source), Twice(8, 4, 100, 3))
    (source / "lit_rerank.json").unlink()
    with pytest.raises(UserError, match=r"holds no adapter of this project: lit_rerank\.json is missing"):
        ship_adapter.ship(source, target)
