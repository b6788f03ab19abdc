"""evaluate.py sweep: the figures at each strength are those of separate commands, and the best points are marked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.sources.own import write_jsonl
from data_modules.trec import read_run
from lit_rerank.as_trained import save_settings
from lit_rerank.cli import evaluate
from lit_rerank.encoding import PromptSettings
from lit_rerank.evaluation.sweep import pareto
from lit_rerank.reading import SlidingWindow
from tests.references import save_adapter
from tests.tiny import record

FIGURE = st.integers(0, 4).map(float)


@given(st.lists(st.tuples(FIGURE, FIGURE), max_size=12))
def test_the_pareto_points_are_those_that_none_beats(points: list[tuple[float, float]]) -> None:
    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] >= other[0] and one[1] >= other[1] and one != other

    assert pareto(points) == [not any(beats(other, point) for other in points) for point in points]


@pytest.fixture(scope="module")
def files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_jsonl([record(f"q{i}", 6) for i in range(4)], folder / "lists.jsonl")
    save_settings(PromptSettings(), SlidingWindow(4, 2), save_adapter(tiny_model, folder / "adapter", seed=3))
    return folder


def sweep(files: Path, model: Path, out: Path, *more: str) -> dict[str, Any]:
    given = ["--model", str(model), "--adapter", str(files / "adapter"), "--out", str(out)]
    evaluate(["sweep", *given, "--candidates", str(files / "lists.jsonl"), *more])
    return dict(json.loads((out / "sweep.json").read_text()))


def separately(files: Path, model: Path | str, folder: Path, *more: str) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """What rerank and mmlu say of a model."""
    of = ["--model", str(model), "--logdir", str(folder / "board"), *more]
    lists = ["--candidates", str(files / "lists.jsonl"), "--window", "4", "--stride", "2"]
    evaluate(["rerank", *of, *lists, "--run", str(folder / "run.txt"), "--metrics", str(folder / "ranking.json")])
    evaluate(["mmlu", *of, "--text", "shipped", "--metrics", str(folder / "kept.json"), "--limit", "12"])
    figures = [json.loads((folder / f"{name}.json").read_text()) for name in ("ranking", "kept")]
    return figures[0], figures[1], read_run(folder / "run.txt")


def test_each_point_has_the_figures_of_that_model_alone(
    files: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scales = ["0", "0.5", "1"]
    board = ("--logdir", str(tmp_path / "board"))
    result = sweep(files, tiny_model, tmp_path / "out", "--limit", "12", *board, "--scales", *scales)
    printed = capsys.readouterr().out
    assert [point["scale"] for point in result["points"]] == [0.0, 0.5, 1.0]
    evaluate(["merge", "--model", str(tiny_model), "--adapter", str(files / "adapter"), "--scale", "0.5",
              "--out", str(tmp_path / "half")])  # fmt: skip
    models: Sequence[tuple[Path, Sequence[str]]] = [
        (tiny_model, ()),
        (tmp_path / "half", ()),
        (tiny_model, ("--adapter", str(files / "adapter"))),
    ]
    runs = []
    for scale, point, (model, more) in zip(scales, result["points"], models, strict=True):
        ranking, kept, run = separately(files, model, tmp_path, *more)
        measured = {name: point["ranking"][name] for name in ("nDCG@10", "RR@10")}
        assert measured == pytest.approx({name: ranking[name] for name in measured})
        assert result["first_stage"]["nDCG@10"] == pytest.approx(ranking["first_stage.nDCG@10"])
        both = point["retention"].keys() & kept.keys()
        assert {"acc", "acc_cloze", "answer_logprob", "bits_per_byte", "n"} <= both
        assert [point["retention"][name] for name in both] == pytest.approx([kept[name] for name in both], abs=1e-6)
        assert ("difference.answer_logprob" in point["retention"]) == (scale != "0")
        runs.append(read_run(tmp_path / "out" / f"scale={scale}.run.txt"))
        assert {q: [d for d, _ in r] for q, r in runs[-1].items()} == {q: [d for d, _ in r] for q, r in run.items()}
        low, high = point["ranking"]["nDCG@10_interval"]
        assert low <= point["ranking"]["nDCG@10"] <= high
        assert (
            f"{float(scale):6g} {point['retention']['answer_logprob']:12.4f} {point['ranking']['nDCG@10']:12.4f}"
            in printed
        )
    assert runs[0] != runs[1] != runs[2]
    places = [(point["retention"]["answer_logprob"], point["ranking"]["nDCG@10"]) for point in result["points"]]
    assert [point["pareto"] for point in result["points"]] == pareto(places)
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    written = b"".join(file.read_bytes() for file in (tmp_path / "board").iterdir())
    tags = ("rerank/nDCG@10", "mmlu/acc_cloze", "sweep/ranking/nDCG@10", "sweep/retention/bits_per_byte")
    for tag in (*tags, "sweep/trade_off"):
        assert tag.encode() in written


def test_retention_is_chosen_by_name(files: Path, tiny_model: Path, tmp_path: Path) -> None:
    result = sweep(
        files, tiny_model, tmp_path / "o", "--limit", "4", "--scales", "0", "1", "--retention", "bits_per_byte"
    )
    places = [(-point["retention"]["bits_per_byte"], point["ranking"]["nDCG@10"]) for point in result["points"]]
    assert [point["pareto"] for point in result["points"]] == pareto(places)
    with pytest.raises(SystemExit, match=r"acc_cloze.*wisdom"):
        sweep(files, tiny_model, tmp_path / "w", "--limit", "4", "--scales", "1", "--retention", "wisdom")


def test_the_base_comes_first_and_a_sweep_is_not_written_over(
    files: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--limit", "4", "--queries", "1", "--decode", "generate")
    result = sweep(files, tiny_model, tmp_path / "o", *few, "--scales", "0.5", "-0.5", "0")
    assert [point["scale"] for point in result["points"]] == [0.0, -0.5, 0.5]
    assert ["difference.answer_logprob" in point["retention"] for point in result["points"]] == [False, True, True]
    for point in result["points"]:
        assert point["ranking"]["nDCG@10_interval"] is None  # of one query
        assert 0 <= point["ranking"]["malformed_generate"] <= 1
    assert "% malformed" in capsys.readouterr().out
    assert not list((tmp_path / "o").glob(".*"))
    before = (tmp_path / "o" / "sweep.json").read_text()
    with pytest.raises(SystemExit, match="o holds a sweep already: name a new directory"):
        sweep(files, Path("/nowhere"), tmp_path / "o")
    assert (tmp_path / "o" / "sweep.json").read_text() == before
    stopped = json.loads(before)
    stopped["points"].pop()
    (tmp_path / "o" / "sweep.json").write_text(json.dumps(stopped))
    with pytest.raises(SystemExit, match="/nowhere"):  # it would begin anew
        sweep(files, Path("/nowhere"), tmp_path / "o")


def test_lists_are_read_in_rounds(files: Path, tiny_model: Path, tmp_path: Path) -> None:
    sweep(files, tiny_model, tmp_path / "o", "--limit", "4", "--scales", "1", "--rounds", "2")
    lists = ["--candidates", str(files / "lists.jsonl"), "--window", "4", "--rounds", "2"]
    model = ["--model", str(tiny_model), "--adapter", str(files / "adapter")]
    evaluate(["rerank", *model, *lists, "--run", str(tmp_path / "run.txt"), "--metrics", str(tmp_path / "m.json")])
    ours, expected = read_run(tmp_path / "o" / "scale=1.run.txt"), read_run(tmp_path / "run.txt")
    assert {q: [d for d, _ in r] for q, r in ours.items()} == {q: [d for d, _ in r] for q, r in expected.items()}
    sweep(files, tiny_model, tmp_path / "slid", "--limit", "4", "--scales", "1")
    assert read_run(tmp_path / "slid" / "scale=1.run.txt") != ours


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scales", "1", "1"], r"scales \[1.0, 1.0\]: name one or more, each once"),
        (["--scales", "nan"], "Got value: nan"),
        (["--scales", "much"], "much"),
        (["--candidates", "{here}/bare.jsonl"], "no query is judged: there is nothing to weigh"),
        (["--qrels", "{here}/none.txt"], "none.txt"),
        (["--questions", "{here}/none.jsonl"], "none.jsonl does not exist"),
        (["--adapter", "/nowhere"], "there is no adapter directory '/nowhere'"),
        (["--out", "{here}/bare.jsonl"], "bare.jsonl"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    files: Path, tiny_model: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    row = {"qid": "q", "query": "Q", "candidates": [{"docid": "d", "text": "T"}]}
    (tmp_path / "bare.jsonl").write_text(json.dumps(row))
    with pytest.raises(SystemExit, match=message) as stop:
        sweep(files, tiny_model, tmp_path / "o", *(word.format(here=tmp_path) for word in more))
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "o" / "sweep.json").exists()
