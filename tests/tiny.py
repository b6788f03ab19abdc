"""A tiny random Llama with a tokenizer of its own, as an ordinary Hugging Face directory, and data for it."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from data_modules.records import Passage, RankingRecord

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = [
    "Each passage below is marked with an identifier in square brackets. Order 12 passages by their relevance.",
    "Step 1: [4]\nStep 2: [4] > [12]\nStep 3: [4] > [12] > [3]",
    "Paris is the capital of France. Berlin is the capital of Germany. Fleas live for a hundred days.",
]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits digits, with ChatML as its template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        model_max_length=4096,
    )
    fast.chat_template = CHATML
    return fast


def save_tiny_model(directory: Path, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """A Llama of 2 layers and random weights, not too small for its choices to differ."""
    tokenizer = tokenizer or tiny_tokenizer()
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def record(qid: str = "q1", n: int = 5, permutation: tuple[int, ...] | None = None) -> RankingRecord:
    """A query about fleas with `n` short passages, by default ordered backwards, graded by their position."""
    passages = tuple(Passage(f"{qid}-d{i}", f"Passage number {i} about fleas and {qid}.") for i in range(1, n + 1))
    return RankingRecord(
        qid=qid,
        query=f"how long do fleas live, {qid}?",
        passages=passages,
        permutation=permutation or tuple(range(n, 0, -1)),
        qrels={passage.docid: i % 4 for i, passage in enumerate(passages)},
    )
