"""Text to numbers and back: the tokenizer that was trained with each network, by the library `tokenizers`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from labsupport.errors import BadInput


class Tokenizer:
    """``encode(text)`` gives token ids, ``decode(ids)`` the text; ``end`` is the token that ends an answer."""

    def __init__(self, words, end: int):
        self._words, self.end = words, end
        self.size = words.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises BadInput for an empty one."""
        return self._words.encode(_checked(text)).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without the marks of a conversation."""
        return self._words.decode([int(token) for token in tokens])

    def chat(self, question: str) -> list[int]:
        """Token ids of a conversation's first turn, up to where the answer begins."""
        turns = f"<|im_start|>user\n{_checked(question)}<|im_end|>\n<|im_start|>assistant\n"
        return self.encode(turns)


class Bytes:
    """A stand-in where there are no weights: each byte of the text is a token."""

    end, size = 2, 259

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, one a byte. Raises BadInput for an empty one."""
        return [byte + 3 for byte in _checked(text).encode()]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids; what is no byte shows as a dot."""
        return bytes(int(token) - 3 if 3 <= token < 259 else ord(".") for token in tokens).decode(errors="replace")

    def chat(self, question: str) -> list[int]:
        """Token ids of a question and a line's end."""
        return self.encode(f"{_checked(question)}\n")


def from_json(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, without its padding. Raises BadInput."""
    import tokenizers

    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path.name}: no such file (looked in {path.parent}); a tokenizer belongs to its network")
    try:
        words = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # a class of the library's own, straight from Exception
        raise BadInput(f"{path.name} is no tokenizer: {error}; copy it again") from error
    words.no_padding()
    words.no_truncation()
    ends = (words.token_to_id(mark) for mark in ("<|im_end|>", "</s>", "[SEP]"))
    return Tokenizer(words, next((end for end in ends if end is not None), 0))


def from_gguf(reader) -> Tokenizer:
    """The byte-pair tokenizer that a GGUF file carries: its tokens, its merges, one digit a token. Raises BadInput."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    fields = reader.fields
    kind = fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else "none"
    if kind != "smollm":
        raise BadInput(
            f"the GGUF file's tokenizer is of kind {kind!r}, and this reader knows 'smollm' alone; hand in a "
            "Hugging Face folder"
        )
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    words = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    words.pre_tokenizer, words.decoder = pre_tokenizers.Sequence(split), decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    words.add_special_tokens([token for token, kind in zip(tokens, kinds) if kind == 3])
    return Tokenizer(words, int(fields["tokenizer.ggml.eos_token_id"].contents()))


def _checked(text: str) -> str:
    if not text.strip():
        raise BadInput("the prompt is empty: there is nothing to go on from; give it a word at least")
    return text
