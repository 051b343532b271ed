"""The README.md beside an export: what it is, how to use it, and its receipt in words."""

import json
import re
from dataclasses import dataclass

from core.config import FullConfig, LowRankConfig, QLoraConfig, RunConfig, TargetConfig
from core.records import Receipt


@dataclass(frozen=True)
class CardFacts:
    """What the card tells besides the receipt."""

    to: str  # "adapter" or "merged"
    base_name: str
    base_origin: str
    run_name: str
    checkpoint: str
    config: RunConfig | None  # None for an adapter that was trained elsewhere
    receipt: Receipt | None
    kind: str = "LoRA adapter"
    token_rows: int = 0  # to which PEFT's user must grow the base's vocabulary first; 0 where it is large enough
    has_tokenizer: bool = False  # an adapter's own, beside it
    beside: str = ""  # what lies in sub-folders, where PEFT does not look: "a prefix", "bottleneck adapters"


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with the front matter that model hubs read."""
    what = facts.kind if facts.to == "adapter" else "merged model"
    training = [] if facts.config is None else [_training(facts, facts.config)]
    parts = [_front_matter(facts), f"# {facts.run_name}\n",
             f"A {what}, made with LoRA Workbench from **{_plain(facts.base_name)}**.\n", _usage(facts),
             *training, _receipt(facts.receipt),
             "The licence of the base model applies to this export too.\n"]
    return "\n".join(parts)


def _front_matter(facts: CardFacts) -> str:
    lines = ["---", f"base_model: {json.dumps(facts.base_name)}", "pipeline_tag: text-generation", "tags:", "- lora",
             "- lora-workbench"]
    lines.insert(2, "library_name: " + ("peft" if facts.to == "adapter" else "transformers"))
    return "\n".join([*lines, "---", ""])


def _usage(facts: CardFacts) -> str:
    if facts.to == "adapter" and facts.beside:
        return ("## Use it\n\n"
                f"{facts.beside[:1].upper()}{facts.beside[1:]} in sub-folders belong to this adapter. PEFT reads an "
                "adapter of the layers in this folder, and a prefix in `prefix`, each alone; bottleneck adapters are "
                "described in `bottleneck/bottleneck_config.json`. LoRA Workbench puts all of it together:\n\n"
                '```sh\nlora-workbench chat "this folder"\n```\n')
    if facts.to == "adapter":
        own = facts.has_tokenizer
        classes = "AutoModelForCausalLM, AutoTokenizer" if own else "AutoModelForCausalLM"
        grow = ("# room for the new tokens, whose rows are the adapter's\n"
                f"base.resize_token_embeddings({facts.token_rows}, mean_resizing=False)\n") if facts.token_rows else ""
        code = (f"from peft import PeftModel\nfrom transformers import {classes}\n\n"
                'base = AutoModelForCausalLM.from_pretrained("folder of the base model")\n'
                f'{grow}model = PeftModel.from_pretrained(base, "this folder")'
                + ('\ntokenizer = AutoTokenizer.from_pretrained("this folder")' if own else ""))
    else:
        code = ("from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                'tokenizer = AutoTokenizer.from_pretrained("this folder")\n'
                'model = AutoModelForCausalLM.from_pretrained("this folder")')
    return f"## Use it\n\n```python\n{code}\n```\n"


def _training(facts: CardFacts, config: RunConfig) -> str:
    training = config.training
    rows = [
        ("Base model", facts.base_name), ("Where the base came from", facts.base_origin),
        ("Checkpoint", facts.checkpoint or "final adapter"),
        *_method_rows(config),
        ("Learning rate", f"{training.learning_rate:g}, {training.schedule}, {training.warmup_steps} warm-up steps"),
        ("Batch", f"{training.batch_size} rows, {training.gradient_accumulation} accumulated"),
        ("Length", f"at most {config.data.max_length} tokens"), ("Seed", str(training.seed)),
    ]
    return "\n".join(["## How it was trained\n", "| | |", "|---|---|",
                      *(f"| {name} | {_plain(value)} |" for name, value in rows), ""])


def _method_rows(config: RunConfig) -> list[tuple[str, str]]:
    adapter, prefix, bottleneck = config.adapter, config.prefix, config.bottleneck
    rows = []
    if isinstance(adapter, LowRankConfig):
        rows.append(("Method", f"{adapter.method}, rank {adapter.rank}, alpha {adapter.alpha:g}, "
                     f"dropout {adapter.dropout:g}"))
    if isinstance(adapter, QLoraConfig):
        rows.append(("Base held in", adapter.quantisation))
    if isinstance(adapter, FullConfig):
        rows.append(("Method", "full fine-tuning"))
    if isinstance(adapter, TargetConfig):
        targets = adapter.target_modules
        rows.append(("Target layers", targets if isinstance(targets, str)
                     else f"{len(targets)} names, the first {targets[0]}"))
    if prefix is not None:
        network = f", through a network of {prefix.projection_size}" if prefix.projection else ""
        rows.append(("Prefix", f"{prefix.length} tokens{network}, learning rate times {prefix.rate:g}"))
    if bottleneck is not None:
        where = {"both": "attention and MLP", "attention": "attention", "mlp": "MLP"}[bottleneck.placement]
        rows.append(("Bottleneck adapters", f"size {bottleneck.size}, {bottleneck.activation}, behind {where}"))
    return rows


def _receipt(receipt: Receipt | None) -> str:
    if receipt is None:
        return "## Receipt\n\nThis export was **not checked** against base + adapter.\n"
    verdict = "Passed" if receipt.passed else "NOT passed"
    lines = [f"## Receipt: {verdict}\n", f"{_plain(receipt.explanation)}\n", "| | |", "|---|---|",
             f"| Number type | {receipt.dtype} |",
             f"| Largest difference of a logit | {receipt.largest_difference:.3g} (allowed {receipt.tolerance:g}) |",
             f"| Same first choice | {receipt.first_choice_agreement:.2%} of positions |",
             f"| Error of the realised weight change | {receipt.realised_delta_error:.3%} |", ""]
    for row in receipt.rows:
        lines += [f"**{_plain(row.prompt)}**\n", _fenced(f"base + adapter: {row.text_adapter}\n"
                                                         f"this export:    {row.text_export}"), ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Foreign text as one line of Markdown without any markup of its own."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
