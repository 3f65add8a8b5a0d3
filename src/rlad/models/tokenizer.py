"""The tokenizer the embedded pair shares: byte-level BPE (any text encodes), learned from puzzles and traces. And one
that splits the same texts differently, for a teacher of another family."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
# A word keeps the one sign that gives it its part in a trace: " knight", "=knight", "?yes", ";yes"; "(1)" is one piece.
_PIECES = r"\(\d+\)|[ =?;]?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]+|\n|\s+"
# Here the "=" goes with the name: " Jo", "seph=", "knight" where the pair's is " Joseph", "=knight", so a token of one
# ends inside a token of the other. The small vocabulary leaves most names and some common words in several tokens.
_OTHER_PIECES, _OTHER_SIZE = r"\(\d+\)| ?[A-Za-z]+=?| ?\d| ?[^\sA-Za-z\d]+|\n|\s+", 448


def _without_tags(text: str) -> str:
    """The tags become tokens of their own afterwards; learning merges across them would spoil their neighbours."""
    for tag in TAGS:
        text = text.replace(tag, "\n")
    return text


def train_other_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that splits at least half of the words of puzzles and traces differently; its template is equal."""
    return train_tokenizer(texts, _OTHER_SIZE, _OTHER_PIECES)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024, pieces: str = _PIECES) -> PreTrainedTokenizerFast:
    """A fast tokenizer with the chat template, <|im_end|> as end of sequence and <|endoftext|> as padding.

    pieces: a regular expression; no token reaches beyond one match of it.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    bpe.train_from_iterator((_without_tags(text) for text in texts), trainer)
    bpe.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="left",
    )
