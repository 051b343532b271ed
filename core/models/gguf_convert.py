"""The child process that dequantises one GGUF file: `python -m core.models.gguf_convert FILE FOLDER`.

It tells its progress as lines of JSON on stdout: {"stage", "done", "total", "unit"}, and at the end
{"finished": true}, or {"error": sentence}. It has a process of its own so that a hostile file can
be ended by time and memory limits, and so that the memory is given back for certain.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SHARD_SIZE = "4GB"


def main(file: Path, folder: Path) -> int:
    """Convert `file` into `folder`. Returns the exit code."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # dequantising is work for the CPU
    try:
        _report_progress_bars()
        convert(file, folder)
    except Exception as error:
        words = " ".join(str(error).split())[:300].rstrip(".")
        _say(error=f"{words} ({type(error).__name__})" if words else type(error).__name__)
        raise
    _say(finished=True)
    return 0


def convert(file: Path, folder: Path) -> None:
    """Dequantise to bf16 and save with tokenizer, chat template and generation config."""
    import torch  # noqa: PLC0415 - the progress bars must be replaced first
    import transformers  # noqa: PLC0415

    from core.models.gguf_header import read_gguf_header  # noqa: PLC0415

    header = read_gguf_header(file)
    _say(stage="Reading the tokenizer", done=0, total=0, unit="")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False, local_files_only=True)
    dense = {"quantization_config": transformers.GgufConfig(dequantize=True)} \
        if hasattr(transformers, "GgufConfig") else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16, trust_remote_code=False, local_files_only=True,
        **dense)
    _require_dense(model, header.parameters)
    _forget_quantisation(model)
    _settle_special_tokens(model, tokenizer, header.metadata)
    _say(stage="Saving", done=0, total=0, unit="")
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(folder)
    mask = os.umask(0)
    os.umask(mask)
    for item in folder.iterdir():
        item.chmod(0o666 & ~mask)  # the writer of the weights makes them private


def _require_dense(model: Any, parameters: int) -> None:
    """Every weight was read from the file and none stayed packed."""
    packed = [name for name, value in model.named_parameters() if not value.is_floating_point()]
    if packed:
        raise ValueError(f"{packed[0]} could not be dequantised")
    if model.num_parameters() < 0.9 * parameters:
        raise ValueError(f"only {model.num_parameters():,} of {parameters:,} weights could be read")


def _forget_quantisation(model: Any) -> None:
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("_model_name_or_path", "_name_or_path"):  # the file's own title; not a place
        model.config.__dict__.pop(name, None)


def _settle_special_tokens(model: Any, tokenizer: Any, metadata: dict[str, Any]) -> None:
    """Generation ends at the end of the text and at the end of a turn, where the file names both."""
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(token for token in ends if isinstance(token, int)))
    generation = model.generation_config
    if ends:
        model.config.eos_token_id = ends[0]
        generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    generation.bos_token_id = metadata.get("tokenizer.ggml.bos_token_id", tokenizer.bos_token_id)
    padding = metadata.get("tokenizer.ggml.padding_token_id", ends[0] if ends else None)
    generation.pad_token_id = model.config.pad_token_id = padding
    if tokenizer.pad_token is None and padding is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)


def _report_progress_bars() -> None:
    """Let the bars that the libraries draw speak JSON instead."""
    import tqdm.auto  # noqa: PLC0415
    from tqdm.std import tqdm as plain_bar  # noqa: PLC0415

    class JsonBar(plain_bar):
        """A bar that prints a line at most every 50 ms and at its end."""

        def __init__(self, *values: Any, **options: Any) -> None:
            self._told = 0.0
            super().__init__(*values, **{**options, "file": _Nowhere(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            """Count on and tell."""
            shown = super().update(n)
            self._tell()
            return shown

        def __iter__(self) -> Any:
            for item in self.iterable:
                yield item
                self.n += 1
                self._tell()

        def _tell(self) -> None:
            if time.monotonic() - self._told > 0.05 or self.n == self.total:
                self._told = time.monotonic()
                stage = str(self.desc or "").split(":")[0].split("...")[0].strip()
                _say(stage=_STAGES.get(stage, stage or "Converting"), done=int(self.n), total=int(self.total or 0),
                     unit="tensors")

    tqdm.auto.tqdm = JsonBar


_STAGES = {
    "Converting and de-quantizing GGUF tensors": "Dequantising",
    "Loading weights": "Building the model",
    "Writing model shards": "Saving",
}


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
