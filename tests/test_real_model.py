"""The whole way on real weights and real teacher permutations: SmolLM2-135M reads, learns and ranks."""

from pathlib import Path

import pytest
import torch

from data_modules.records import Window
from data_modules.sources import TeacherWindowsSource
from lit_rerank.backbone import BackboneSettings, load_backbone, load_tokenizer
from lit_rerank.encoding import PromptSettings, WindowEncoder
from lit_rerank.reranker import Reranker
from lit_rerank.scoring import token_logps
from lit_rerank.targets import SFTTargets
from scripts.recipes import dtype

MODEL = Path(__file__).resolve().parent.parent / "models" / "smollm2-135m-instruct"
pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="models/smollm2-135m-instruct is absent: run `make model`")


def test_a_real_window_is_learned_within_a_few_steps(shared_data: Path) -> None:
    source = TeacherWindowsSource(
        shared_data / "train" / "dl19.teacher_windows.jsonl.gz", shared_data / "train" / "dl19.passages.jsonl.gz"
    )
    window = Window.of(next(iter(source)), (3, 11, 5))
    encoder = WindowEncoder(load_tokenizer(str(MODEL)), PromptSettings(max_passage_tokens=24), 8192)
    targets = SFTTargets.build([encoder.encode(window)])
    model = load_backbone(BackboneSettings(str(MODEL), dtype=dtype()))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(6):
        loss = targets.loss(token_logps(model, targets.packed))
        losses.append((loss.windows.item(), loss.choice.item()))
        loss.windows.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1][0] < 0.5 * losses[0][0]


def test_the_python_api_ranks_with_real_weights() -> None:
    passages = ["Berlin is the capital of Germany.", "Paris is the capital of France."]
    ranked = Reranker.from_pretrained(str(MODEL)).rank("capital of France", passages)
    assert sorted(passage.text for passage in ranked) == passages
