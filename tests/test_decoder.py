"""What every way to decode has in common: batches, progress, and windows that need no model."""

from pathlib import Path

import pytest

from data_modules.records import Window
from lit_rerank.backbone import load_model, load_tokenizer
from lit_rerank.decoder import Decoder
from lit_rerank.decoding import First, Stepwise
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.errors import UserError
from lit_rerank.generation import Generate
from lit_rerank.ways import open_decoder
from tests.tiny import record


@pytest.fixture(params=[Stepwise, First, Generate])
def decoder(request: pytest.FixtureRequest, tiny_model: Path) -> Decoder:
    encoder = WindowEncoder(load_tokenizer(str(tiny_model)), PromptSettings())
    return request.param(load_model(str(tiny_model), dtype="float32"), encoder, 1500)  # type: ignore[no-any-return]


def windows(*sizes: int) -> list[Window]:
    return [Window.of(record(f"q{i}", n), range(n)) for i, n in enumerate(sizes)]


def test_answers_come_in_the_windows_order(decoder: Decoder) -> None:
    shown = windows(3, 7, 1, 2, 12, 5)
    for window, decoded in zip(shown, decoder(shown), strict=True):
        assert sorted(decoded.permutation) == list(range(1, len(window) + 1))
        assert decoded.permutation == decoder([window])[0].permutation


def test_batches_stay_within_their_tokens(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    decode = decoder.decode

    def noted(prompts):  # type: ignore[no-untyped-def]
        batches.append([decoder.length(prompt) for prompt in prompts])
        return decode(prompts)

    monkeypatch.setattr(decoder, "decode", noted)
    decoder(windows(3, 7, 2, 30, 12, 5, 4, 3))
    assert len(batches) < 8
    assert all(max(lengths) * len(lengths) <= 1500 or len(lengths) == 1 for lengths in batches)


def test_one_passage_needs_no_model(decoder: Decoder) -> None:
    decoder.model = None  # type: ignore[assignment]
    (decoded,) = decoder(windows(1))
    assert decoded.permutation == (1,)
    assert not decoded.malformed


def test_nothing_is_decoded_to_nothing(decoder: Decoder) -> None:
    assert decoder([]) == []


def test_progress_counts_every_window_once(decoder: Decoder) -> None:
    counts: list[int] = []
    decoder(windows(3, 7, 1, 2, 12, 5), progress=counts.append)
    assert sum(counts) == 6


def test_training_mode_survives(decoder: Decoder) -> None:
    decoder.model.train()
    decoder(windows(3))
    assert decoder.model.training


def test_a_batch_of_nothing_is_refused(decoder: Decoder) -> None:
    with pytest.raises(UserError, match="max_batch_tokens is 0"):
        type(decoder)(decoder.model, decoder.encoder, 0)


@pytest.mark.parametrize(
    ("how", "form", "kind"),
    [(None, "chain", Stepwise), ("chain", "chain", Stepwise), (None, "direct", Stepwise), ("first", "direct", First)],
)
def test_decoders_by_name(how: str | None, form: str, kind: type[Decoder], tiny_model: Path) -> None:
    encoder = WindowEncoder(load_tokenizer(str(tiny_model)), PromptSettings(form))
    assert type(open_decoder(how, load_model(str(tiny_model)), encoder)) is kind  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "match"),
    [("direct", "decode direct writes the format direct, and the prompt asks for chain"), ("beam", "decode 'beam'")],
)
def test_decoders_that_there_are_not(how: str, match: str, tiny_model: Path) -> None:
    encoder = WindowEncoder(load_tokenizer(str(tiny_model)), PromptSettings())
    with pytest.raises(UserError, match=match):
        open_decoder(how, load_model(str(tiny_model)), encoder)  # type: ignore[arg-type]
