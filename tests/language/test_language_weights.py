"""Weights: read from GGUF files and Hugging Face folders, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from labsupport.errors import BadInput
from labsupport.language import cached, generation, networks, tokenizer, weight_files, weights

FETCHED = weights.root()  # before a test gets a cache of its own
SHAPE = networks.Shape(2, 64, 4, 2, 128, 300, 128)
gguf = pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")


def bert_folder(folder, network):
    """A Hugging Face folder of a small BERT."""
    from safetensors.torch import save_file

    folder.mkdir()
    shape = network.shape
    config = {"model_type": "bert", "num_hidden_layers": shape.layers, "hidden_size": shape.hidden, "num_attention_heads": shape.heads,
              "intermediate_size": shape.inner, "vocab_size": shape.vocabulary, "max_position_embeddings": shape.positions, "layer_norm_eps": shape.epsilon}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    parts = {"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value", "out": "attention.output.dense",
             "norm1": "attention.output.LayerNorm", "up": "intermediate.dense", "down": "output.dense", "norm2": "output.LayerNorm"}  # fmt: skip
    heads = {"token": "word_embeddings", "position": "position_embeddings", "norm": "LayerNorm"}
    tensors = {
        "embeddings.token_type_embeddings.weight": torch.zeros(2, shape.hidden),
        "pooler.dense.bias": torch.zeros(3),
    }
    for name, tensor in network.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if owner.startswith("layers."):
            _, number, part = owner.split(".")
            tensors[f"encoder.layer.{number}.{parts[part]}.{kind}"] = tensor.contiguous()
        else:
            tensors[f"embeddings.{heads[owner]}.{kind}"] = tensor.contiguous()
    save_file(tensors, str(folder / "model.safetensors"))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "hello": 5, "world": 6}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    return folder


def gguf_file(path, network, *, architecture="llama", kind="smollm"):
    """A GGUF file of a small Llama, as llama.cpp's converter writes it: rows of query and key in pairs."""
    shape, writer = network.shape, gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_feed_forward_length(shape.inner)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.positions)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(["<|im_end|>", "h", "e", "he", *[f"t{i}" for i in range(shape.vocabulary - 4)]])
    writer.add_token_types([3] + [1] * (shape.vocabulary - 1))
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(0)
    names = {ours: theirs for theirs, ours in weight_files.GGUF_NAMES.items()}
    for name, tensor in network.state_dict().items():
        values = tensor.numpy()
        parts = name.split(".")
        if parts[0] == "layers":
            if parts[2] in ("query", "key"):
                values = (
                    values.reshape(-1, 2, shape.head_width // 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
                )
            name = f"blk.{parts[1]}.{names[parts[2]]}.weight"
        else:
            name = {"token.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}.get(name, name)
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def network():
    return networks.seeded(networks.Decoder(SHAPE), seed=7)


def test_a_gguf_file_gives_the_network_it_was_written_from(tmp_path, network):
    found = weights.decoder(gguf_file(tmp_path / "small.gguf", network))
    assert found.trained and found.network.shape.kv_heads == 2 and found.tokenizer.end == 0
    answers = [
        generation.generate(cached.TorchCached(n, capacity=40), [5, 6, 7], 12).tokens for n in (network, found.network)
    ]
    assert answers[0] == answers[1] and found.tokenizer.encode("he") == [3]
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), found.network.parameters()))


def test_damaged_and_foreign_gguf_files(tmp_path, network):
    whole = gguf_file(tmp_path / "whole.gguf", network).read_bytes()
    cases = {
        "page.gguf": (b"<html>not found</html>", r"is no GGUF file: it begins with b'<htm'"),
        "empty.gguf": (b"", "is no GGUF file"),
        "head.gguf": (whole[:200], "is damaged"),
        "cut.gguf": (whole[: len(whole) // 2], "is damaged"),
        "noise.gguf": (b"GGUF" + bytes(range(256)) * 4, "is damaged"),
    }
    for name, (data, said) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadInput, match=said):
            weights.decoder(tmp_path / name)
    with pytest.raises(BadInput, match="no such file"):
        weights.decoder(tmp_path / "absent.gguf")
    with pytest.raises(BadInput, match="holds a network of kind 'mamba'; this decoder is a 'llama'"):
        weights.decoder(gguf_file(tmp_path / "mamba.gguf", network, architecture="mamba"))
    with pytest.raises(BadInput, match="tokenizer is of kind 'bert-bpe'"):
        weights.decoder(gguf_file(tmp_path / "words.gguf", network, kind="bert-bpe"))


def test_weights_of_another_shape_and_lacking_ones(tmp_path, network):
    class Wide:
        shape = networks.Shape(2, 64, 4, 2, 256, 300, 128)
        state_dict = staticmethod(network.state_dict)

    class Deep:
        shape = networks.Shape(3, 64, 4, 2, 128, 300, 128)
        state_dict = staticmethod(network.state_dict)

    with pytest.raises(
        BadInput, match=r"has shape \(128, 64\), and this network takes \(256, 64\): weights of another shape"
    ):
        weights.decoder(gguf_file(tmp_path / "wide.gguf", Wide))
    with pytest.raises(BadInput, match="lacks 9 of the .* weights of this network, layers.2"):
        weights.decoder(gguf_file(tmp_path / "deep.gguf", Deep))


def test_an_output_layer_of_its_own_and_a_field_that_is_missing(tmp_path, network, monkeypatch):
    class Untied:
        shape = SHAPE

        @staticmethod
        def state_dict():
            return {**network.state_dict(), "output.weight": torch.zeros(300, 64)}

    with pytest.raises(BadInput, match="has an output layer of its own"):
        weights.decoder(gguf_file(tmp_path / "untied.gguf", Untied))
    monkeypatch.setattr(gguf.GGUFWriter, "add_vocab_size", lambda self, size: None)
    with pytest.raises(BadInput, match="does not say llama.vocab_size"):
        weights.decoder(gguf_file(tmp_path / "unsaid.gguf", network))


def test_a_folder_of_one_s_own(tmp_path):
    network = networks.seeded(networks.Encoder(networks.Shape(2, 64, 4, 4, 128, 300, 64, 1e-12)))
    found = weights.encoder(bert_folder(tmp_path / "mine", network))
    tokens, lengths = network.example_input(2, 5)
    assert torch.allclose(found.network(tokens, lengths), network(tokens, lengths), atol=1e-6)
    assert found.tokenizer.encode("hello world") == [5, 6] and "weights from mine" in repr(found)
    with pytest.raises(BadInput, match="holds a model of type 'bert'; wanted is 'llama'"):
        weights.decoder(tmp_path / "mine")
    (tmp_path / "mine/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="model.safetensors is damaged"):
        weights.encoder(tmp_path / "mine")
    (tmp_path / "mine/config.json").write_text("{")
    with pytest.raises(BadInput, match="is no JSON"):
        weights.encoder(tmp_path / "mine")
    with pytest.raises(BadInput, match="has no config.json"):
        weights.encoder(tmp_path)


def test_without_weights_a_seeded_network_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
    found = weights.encoder()
    assert (
        not found.trained and "its answers mean nothing" in repr(found) and "fetches them once (84 MB)" in repr(found)
    )
    assert found.network.shape.layers == 6 and found.tokenizer.encode("ab") == [100, 101]
    with pytest.raises(BadInput, match="choose one of"):
        weights.folder("bert")


def test_texts_that_are_none():
    words = tokenizer.Bytes()
    assert words.decode(words.encode("año")) == "año" and words.decode([1, 4000]) == ".."
    for text, said in (
        ("", "the prompt is empty"),
        ("  \n", "the prompt is empty"),
        (3, "(text|question)=3; wanted text"),
    ):
        with pytest.raises(BadInput, match=said):
            words.encode(text)
        with pytest.raises(BadInput, match=said):
            words.chat(text)


@pytest.fixture
def fetched(monkeypatch):
    """The weights where `lab` and `test` put them; the cache of a test is its own."""
    monkeypatch.setenv(weights.VARIABLE, str(FETCHED))


@pytest.mark.skipif(bool(weights.why_not("smollm2")), reason="the weights were not fetched")
def test_the_fetched_decoder_knows_the_capital_of_france(fetched):
    found = weights.decoder()
    session = cached.TorchCached(found.network, capacity=64)
    answer = generation.generate(
        session, found.tokenizer.chat("What is the capital of France?"), 12, end=found.tokenizer.end
    )
    assert "Paris" in found.tokenizer.decode(answer.tokens)


@pytest.mark.skipif(bool(weights.why_not("minilm")), reason="the weights were not fetched")
def test_the_fetched_encoder_knows_what_is_alike(fetched):
    found = weights.encoder()

    def vector(text):
        tokens = found.tokenizer.encode(text)
        return found.network(torch.tensor([tokens], dtype=torch.int32), torch.tensor([len(tokens)], dtype=torch.int32))[
            0
        ]

    food, meal, baby = map(vector, ("A man is eating food.", "A man is eating a meal.", "The girl is carrying a baby."))
    assert food @ meal > 0.8 > 0.3 > food @ baby
