"""Files that hold weights: GGUF as llama.cpp writes it, and Hugging Face's folders; checked, and renamed to ours."""

from __future__ import annotations

import json
import os
from pathlib import Path

from labsupport.errors import BadInput


def gguf_reader(path: str | os.PathLike):
    """A ``gguf.GGUFReader`` on a checked file: missing, foreign and cut off are told apart. Raises BadInput."""
    import gguf

    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path.name}: no such file (looked in {path.parent}); give the path of a GGUF file")
    with path.open("rb") as file:
        head = file.read(4)
    if head != b"GGUF":
        raise BadInput(
            f"{path.name} is no GGUF file: it begins with {head!r} and not with b'GGUF'; was the download an "
            "error page?"
        )
    try:
        reader = gguf.GGUFReader(path)
        end = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors), default=0)
    except Exception as error:  # the reader walks into whatever the bytes say
        raise BadInput(f"{path.name} is damaged: {type(error).__name__}: {error}; fetch it again") from error
    if not reader.tensors or end > path.stat().st_size:
        raise BadInput(
            f"{path.name} is damaged: it ends after {path.stat().st_size} bytes, {end} were announced; fetch it again"
        )
    return reader


GGUF_NAMES = {
    "attn_norm": "norm1",
    "ffn_norm": "norm2",
    "attn_q": "query",
    "attn_k": "key",
    "attn_v": "value",
    "attn_output": "out",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}


def gguf_tensors(reader, shape):
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
            name = {"token_embd.weight": "token.weight", "output_norm.weight": "norm.weight"}.get(
                tensor.name, tensor.name
            )
        if parts[-2] in ("attn_q", "attn_k"):
            pairs = values.reshape(-1, shape.head_width // 2, 2, values.shape[-1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        yield name, torch.from_numpy(np.array(values))


def bert_names(tensors: dict):
    """(name, tensor): Hugging Face's names of a BERT to ours; the segment row 0 is part of every position."""
    layer = {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "out",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "up",
        "output.dense": "down",
        "output.LayerNorm": "norm2",
    }
    head = {
        "embeddings.word_embeddings": "token",
        "embeddings.position_embeddings": "position",
        "embeddings.LayerNorm": "norm",
    }
    segment = tensors.get("embeddings.token_type_embeddings.weight")
    for key, value in tensors.items():
        owner, _, kind = key.removeprefix("bert.").rpartition(".")
        if owner.startswith("encoder.layer."):
            number, _, part = owner.removeprefix("encoder.layer.").partition(".")
            yield f"layers.{number}.{layer.get(part, part)}.{kind}", value
        elif owner in head:
            yield (
                f"{head[owner]}.{kind}",
                value + segment[0] if head[owner] == "position" and segment is not None else value,
            )


def llama_names(tensors: dict):
    """(name, tensor): Hugging Face's names of a Llama to ours."""
    layer = {
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.o_proj": "out",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
    }
    for key, value in tensors.items():
        owner = key.removeprefix("model.").removesuffix(".weight")
        if owner.startswith("layers."):
            _, number, part = owner.split(".", 2)
            yield f"layers.{number}.{layer.get(part, part)}.weight", value
        else:
            yield {"embed_tokens": "token", "norm": "norm"}.get(owner, owner) + ".weight", value


def config_of(place: Path, kind: str) -> dict:
    """config.json of a Hugging Face folder. Raises BadInput."""
    path = place / "config.json"
    if not path.is_file():
        raise BadInput(
            f"{place.name} has no config.json; give the folder of a model saved by Hugging Face's save_pretrained"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path.name} is no JSON ({error}); save the model again") from error
    if config.get("model_type") != kind:
        raise BadInput(f"{place.name} holds a model of type {config.get('model_type')!r}; wanted is {kind!r}")
    return config


def safetensors_of(place: Path) -> dict:
    """All tensors of model.safetensors as FP32. Raises BadInput."""
    from safetensors.torch import load_file

    path = place / "model.safetensors"
    if not path.is_file():
        raise BadInput(
            f"{place.name} has no model.safetensors; save the model with safe_serialization=True, in one file"
        )
    try:
        tensors = load_file(str(path))
    except Exception as error:  # the library has several classes for it
        raise BadInput(f"{path.name} is damaged: {error}; copy it again") from error
    return {name: tensor.float() for name, tensor in tensors.items()}
