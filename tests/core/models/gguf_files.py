"""A real little GGUF file of the tiny Llama: weights in F32 and Q8_0, tokenizer, chat template."""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}


def write_tiny_gguf(model: Path, file: Path, quantised: bool = True) -> dict[str, np.ndarray]:
    """Write `model` (a tiny Llama folder) as GGUF. Returns the weights that the file stands for, by HF name."""
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_name("tiny")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, model)
    stored = {}
    for name, value in load_file(model / "model.safetensors").items():
        stored[name] = _add_tensor(writer, name, value, config, quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _add_tokenizer(writer: gguf.GGUFWriter, model: Path) -> None:
    described = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = described["model"]["vocab"] | {item["content"]: item["id"] for item in described["added_tokens"]}
    special = {item["content"] for item in described["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template((model / "chat_template.jinja").read_text())


def _add_tensor(writer: gguf.GGUFWriter, name: str, value: np.ndarray, config: dict, quantised: bool) -> np.ndarray:
    base = name.removesuffix(".weight").removeprefix("model.")
    if base == "embed_tokens":
        target = "token_embd"
    elif base == "norm":
        target = "output_norm"
    else:
        _, layer, part = base.split(".", 2)
        target = f"blk.{layer}.{_NAMES[part]}"
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(base[-6:])
    # llama.cpp lays the two halves of a rotary pair side by side
    turned = _permute(value, heads) if heads else value
    if value.ndim == 1 or not quantised:
        writer.add_tensor(f"{target}.weight", np.ascontiguousarray(turned))
        return value
    packed = gguf.quantize(np.ascontiguousarray(turned), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor(f"{target}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    opened = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    return _permute_back(opened, heads) if heads else opened


def _permute(value: np.ndarray, heads: int) -> np.ndarray:
    rows, columns = value.shape
    return value.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _permute_back(value: np.ndarray, heads: int) -> np.ndarray:
    rows, columns = value.shape
    return value.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
