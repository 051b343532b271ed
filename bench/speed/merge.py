"""Merging a random model of the shape of Llama 7B, in shards, against copying its folder."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from bench.speed.plan import Plan, scratch
from bench.speed.report import Figure, Found

WIDTH, INNER, VOCABULARY, RANK = 4096, 11008, 32000, 8
MATRICES = {**{f"self_attn.{kind}_proj": (WIDTH, WIDTH) for kind in "qkvo"},
            "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER)}
LAYER_BYTES = 2 * sum(rows * columns for rows, columns in MATRICES.values())
END_BYTES = 2 * 2 * VOCABULARY * WIDTH  # embedding and output layer
BUDGET = 1.5e9


def merge(plan: Plan) -> Found:
    """Copy and merge in turns; the receipt apart."""
    turns: list[dict[str, Any]] = []
    with scratch() as folder:
        needed = 2 * plan.merge_gigabytes * 1e9
        if shutil.disk_usage(folder).free < 1.1 * needed:
            return Found((Figure("merge", (), BUDGET / 1e9, "most", "{:.2f} GB", f"{needed / 1e9:.0f} GB of disk are "
                                 "needed"),))
        made = plan.ask("merge:make", folder=str(folder), layers=layers_of(plan.merge_gigabytes))
        for _ in range(plan.turns):
            turns.append({side: plan.ask(f"merge:{side}_once", folder=str(folder)) for side in ("copy", "merge")})
    speeds = tuple(turn["copy"]["seconds"] / turn["merge"]["seconds"] for turn in turns)
    synced = tuple(turn["copy"]["seconds_on_disk"] / turn["merge"]["seconds"] for turn in turns)
    memory = tuple(turn["merge"]["peak_rss_bytes"] / 1e9 for turn in turns)
    size = f"{made['bytes'] / 1e9:.1f} GB"
    return Found((
        Figure("peak memory of a merge", memory, BUDGET / 1e9, "most", "{:.2f} GB", size),
        Figure("speed of the merge against copying the folder", speeds, 0.5),
        Figure("the same with the copy on the disk, as the merge is", synced),
    ), {"merge": turns})


def layers_of(gigabytes: float) -> int:
    """As many layers as give about this size; the model of 7 billion has 32."""
    return max(1, round((gigabytes * 1e9 - END_BYTES) / LAYER_BYTES))


def make(folder: str, layers: int) -> dict[str, Any]:
    """Write the model into folder/base, one shard a layer, and an adapter on all linear layers into folder/adapter."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models

    base = Path(folder) / "base"
    base.mkdir()
    generator = torch.Generator().manual_seed(0)
    grain = (0.02 * torch.randn(2**24, generator=generator)).to(torch.bfloat16)  # random, used again at other places
    starts = count()

    def random(rows: int, columns: int) -> torch.Tensor:
        turned = grain.roll(7919 * next(starts))
        return turned.repeat(-(-rows * columns // len(turned)))[:rows * columns].reshape(rows, columns)

    weight_map, total = {}, 0
    for number, shapes in enumerate(shard_shapes(layers), 1):
        name = f"model-{number:05}-of-{layers + 1:05}.safetensors"
        tensors = {key: random(*shape) if len(shape) == 2 else torch.ones(shape, dtype=torch.bfloat16)
                   for key, shape in shapes.items()}
        save_file(tensors, base / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    (base / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}), encoding="utf-8")
    (base / "config.json").write_text(json.dumps(model_config(layers)), encoding="utf-8")
    Tokenizer(models.BPE()).save(str(base / "tokenizer.json"))  # no model is taken without one
    make_adapter(Path(folder) / "adapter", layers)
    sync()
    return {"bytes": total}


def shard_shapes(layers: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors of every shard: a layer each, and last what is around them."""
    for layer in range(layers):
        place = f"model.layers.{layer}"
        yield {**{f"{place}.{kind}.weight": shape for kind, shape in MATRICES.items()},
               f"{place}.input_layernorm.weight": (WIDTH,), f"{place}.post_attention_layernorm.weight": (WIDTH,)}
    yield {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "lm_head.weight": (VOCABULARY, WIDTH),
           "model.norm.weight": (WIDTH,)}


def model_config(layers: int) -> dict[str, Any]:
    """config.json of the model."""
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
            "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 32,
            "num_key_value_heads": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "bfloat16", "bos_token_id": 1,
            "eos_token_id": 2}


def sync() -> None:
    """Let what was written reach the disk, where the system can be asked for it: the next turn shall not pay for it."""
    if hasattr(os, "sync"):
        os.sync()


def make_adapter(folder: Path, layers: int) -> None:
    """A random adapter in PEFT layout."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(layers):
        for kind, (rows, columns) in MATRICES.items():
            key = f"base_model.model.model.layers.{layer}.{kind}"
            tensors[f"{key}.lora_A.weight"] = 0.02 * torch.randn(RANK, columns, generator=generator)
            tensors[f"{key}.lora_B.weight"] = 0.02 * torch.randn(rows, RANK, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0.0,
              "target_modules": sorted(kind.rpartition(".")[2] for kind in MATRICES), "bias": "none",
              "base_model_name_or_path": ""}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def copy_once(folder: str) -> dict[str, Any]:
    """Copy the model's folder; also how long until it is on the disk."""
    target = Path(folder) / "copied"
    started = time.perf_counter()
    shutil.copytree(Path(folder) / "base", target)
    seconds = time.perf_counter() - started
    for path in target.iterdir():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    on_disk = time.perf_counter() - started
    shutil.rmtree(target)
    sync()
    return {"seconds": seconds, "seconds_on_disk": on_disk}


def merge_once(folder: str) -> dict[str, Any]:
    """Merge as the export does, without the receipt."""
    from core.control import Control
    from core.demo import peak_rss_bytes
    from core.events import Result
    from core.export.export import export
    from core.jobs import Export

    root = Path(folder)
    job = Export(root / "adapter", "merged", root / "merged", receipt=False, base=str(root / "base"))
    started = time.perf_counter()
    *_, last = export(job, Control())
    seconds = time.perf_counter() - started
    assert isinstance(last, Result)
    shutil.rmtree(root / "merged")
    sync()
    return {"seconds": seconds, "bytes": last.values["bytes"], "peak_rss_bytes": peak_rss_bytes()}
