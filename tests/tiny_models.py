"""Builders of tiny random models, one of each family, with a small real tokenizer."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

VOCABULARY = 384
CONTEXT_LENGTH = 512
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France? The capital of France is Paris.",
    "I would like two pizzas with extra cheese and one lemonade, please.",
    "Write a short answer in JSON: {\"item\": \"tea\", \"count\": 2}",
    "A small model learns quickly when the task is simple and the rows are clear.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "No, make that three. Thank you, and have a nice day!",
    "system user assistant",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 384 tokens with ChatML; the same at every call."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=1, show_progress=False,
        special_tokens=[AddedToken(text, special=True) for text in _SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|im_end|>",
        pad_token="<|endoftext|>", model_max_length=CONTEXT_LENGTH, clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _common(layers: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers,
        "num_attention_heads": 4, "max_position_embeddings": CONTEXT_LENGTH, "initializer_range": 0.1,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
    }


def _llama() -> LlamaConfig:
    return LlamaConfig(**_common(3), num_key_value_heads=2, tie_word_embeddings=True)


def _qwen2() -> Qwen2Config:
    return Qwen2Config(**_common(2), num_key_value_heads=2, tie_word_embeddings=True)


def _qwen3() -> Qwen3Config:
    return Qwen3Config(**_common(2), num_key_value_heads=2, head_dim=16, tie_word_embeddings=False)


def _mistral() -> MistralConfig:
    return MistralConfig(**_common(2), num_key_value_heads=2, sliding_window=None, tie_word_embeddings=False)


def _gemma2() -> Gemma2Config:
    return Gemma2Config(**_common(2), num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=64)


def _gemma3() -> Gemma3TextConfig:
    return Gemma3TextConfig(
        **_common(2), num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=64)


def _phi3() -> Phi3Config:
    return Phi3Config(**_common(2), num_key_value_heads=2, tie_word_embeddings=False, sliding_window=None)


def _gpt2() -> GPT2Config:
    return GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT_LENGTH, n_embd=64, n_layer=2, n_head=4, n_inner=128,
        initializer_range=0.1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=2, pad_token_id=0)


def _gpt_neox() -> GPTNeoXConfig:
    return GPTNeoXConfig(**_common(2), tie_word_embeddings=False, use_parallel_residual=True)


def _falcon() -> FalconConfig:
    return FalconConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=128,
        num_kv_heads=2, new_decoder_architecture=True, bias=True, alibi=False, initializer_range=0.1,
        max_position_embeddings=CONTEXT_LENGTH, bos_token_id=0, eos_token_id=2, pad_token_id=0)


def _bert() -> BertConfig:
    return BertConfig(**_common(2), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def _mixtral() -> MixtralConfig:
    return MixtralConfig(**_common(2), num_key_value_heads=2, tie_word_embeddings=False, sliding_window=None,
                         num_local_experts=4, num_experts_per_tok=2)


def _qwen2_moe() -> Qwen2MoeConfig:
    # the second layer is dense, as in models that mix both
    return Qwen2MoeConfig(**_common(2), num_key_value_heads=2, tie_word_embeddings=False, num_experts=4,
                          num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=48,
                          mlp_only_layers=[1])


def _qwen3_moe() -> Qwen3MoeConfig:
    return Qwen3MoeConfig(**_common(2), num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, num_experts=4,
                          num_experts_per_tok=2, moe_intermediate_size=32, mlp_only_layers=[1], norm_topk_prob=True)


_CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3, "mistral": _mistral, "gemma2": _gemma2,
    "gemma3": _gemma3, "phi3": _phi3, "gpt2": _gpt2, "gpt_neox": _gpt_neox,
}
FAMILIES = list(_CONFIGS)
_MIXTURES: dict[str, Callable[[], Any]] = {"mixtral": _mixtral, "qwen2_moe": _qwen2_moe, "qwen3_moe": _qwen3_moe}
MIXTURES = list(_MIXTURES)
_OTHERS: dict[str, Callable[[], Any]] = {"falcon": _falcon, "bert": _bert}  # BERT fills in masked words
OTHERS = list(_OTHERS)
# rotary, Conv1D and fused, sliding windows, experts: what differs most
_QUICK = ("llama", "gpt2", "gemma3", "mixtral")


def some_quick(names: Iterable[str], quick: Collection[str] = _QUICK) -> list[Any]:
    """Parameters for a test of many families or cases: `quick` run always, the others with the long tests."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.full) for name in names]


def build_tiny(family: str, folder: Path, *, seed: int = 0, shard_size: str = "5GB",
               dtype: torch.dtype = torch.float32) -> Path:
    """Save a random model of `family` (safetensors) with its tokenizer into `folder`.

    Args:
        family: one of FAMILIES, MIXTURES or OTHERS.
        folder: made if missing.
        seed: of the random weights; the same seed gives the same files.
        shard_size: smaller than the model ("100KB") gives several shards and an index.
        dtype: of the files.

    Returns:
        `folder`.
    """
    config = (_CONFIGS | _MIXTURES | _OTHERS)[family]()
    kinds = MODEL_FOR_MASKED_LM_MAPPING if family == "bert" else MODEL_FOR_CAUSAL_LM_MAPPING
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kinds[type(config)](config)
    if model.can_generate():
        model.generation_config.eos_token_id = 2
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    build_tokenizer().save_pretrained(folder)
    return folder
