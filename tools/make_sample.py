"""Write the sample dataset: free-text orders and the JSON that they mean. The same seed gives the same files.

    python tools/make_sample.py [--out resources/samples/orders] [--seed 0]

`sample_words.py` holds the wordings and values, `sample_orders.py` draws orders and knows their answers,
`sample_writer.py` puts them into words.
"""

import argparse
import json
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # so that it runs from a fresh clone, before anything is installed

from sample_orders import Mix  # noqa: E402
from sample_words import HELD_OUT, TRAINING, Words  # noqa: E402
from sample_writer import Row, Writer  # noqa: E402

from core import files  # noqa: E402

SYSTEM = "Order to JSON."
TRAINING_ROWS = 1080
HELD_OUT_ROWS = 160
# what is hard to learn is practised more often than it is asked
TRAINING_MIX = Mix(corrected=0.65, slips=0.14, listed=0.14, large=0.35, in_words=0.6,
                   things=(45, 38, 17), given=0.6, corrections={
    "inline_quantity": 8, "inline_value": 7, "tail_quantity": 14, "tail_single": 5, "tail_remove": 6, "tail_add": 6,
    "tail_swap": 10, "tail_day": 4, "tail_name": 3, "tail_city": 3})
HELD_OUT_MIX = Mix(corrected=0.4, slips=0.07, listed=0.1, large=0.25, in_words=0.6,
                   things=(45, 38, 17), given=0.6, corrections={
    "inline_quantity": 9, "inline_value": 9, "tail_quantity": 10, "tail_single": 5, "tail_remove": 6, "tail_add": 6,
    "tail_swap": 6, "tail_day": 5, "tail_name": 3, "tail_city": 3})

RUN_FILE = """\
# The sample run: orders in free text to JSON, a few minutes on two processor cores.

[model]
path = "starter"

[data]
train = ["train.jsonl"]
validation_fraction = 0.03
max_length = 192

[adapter]
method = "lora"
rank = 16
alpha = 32.0
target_modules = "all-linear"

[training]
epochs = 1.0
batch_size = 2
learning_rate = 8e-4
schedule = "linear"
warmup_steps = 20
evaluate_every = 180
checkpoint_every = 180
dtype = "fp32"
"""

README = """\
# Orders to JSON

Made for LoRA Workbench by `tools/make_sample.py` (Apache-2.0, no outside data): {training} training rows in
`train.jsonl`, {held_out} held-out rows in `heldout.jsonl`, chat messages with the system message "{system}".

    {message}
    {answer}

**The answer** is JSON without spaces; what the message does not say is left out.
- `items`: each a number and the thing as it is written, in the order of the message. `a dozen` is 12, `a couple of` 2,
  `cup x3` is `3 cup`.
- `ship`, in this order: `for` and the name, `to` and the city, both as written, `on` and the day: `Friday` for `fri`
  or `firday`, `21 May` for `the 21st of May`.
- A correction counts, what it corrects does not: a new number, day, name or city; a thing that is added, taken out,
  or swapped for another in its place.
- Slips of the finger are in the words around, in weekdays and in numbers; things, names and cities are spelled right.

**The split.** Frames, corrections and greetings of the held-out rows ({held_out_wordings} wordings) are
none of those trained on ({training_wordings}). No held-out name, city, thing, adjective or date occurs in training;
numbers, weekdays and months are the same vocabulary in both.

**The score** is exact match: the answer's text, stripped of white space at its ends, equals the expected text.
"""


def main() -> None:
    """Read the command line and write the four files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "resources" / "samples" / "orders")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    training = draw(Writer(TRAINING, TRAINING_MIX, f"training {arguments.seed}"), TRAINING_ROWS)
    held_out = draw(Writer(HELD_OUT, HELD_OUT_MIX, f"held out {arguments.seed}"), HELD_OUT_ROWS)
    out: Path = arguments.out
    files.write_text(out / "train.jsonl", as_lines(training))
    files.write_text(out / "heldout.jsonl", as_lines(held_out))
    files.write_text(out / "run.toml", RUN_FILE)
    files.write_text(out / "README.md", README.format(
        training=len(training), held_out=len(held_out), system=SYSTEM, message=held_out[0].message,
        answer=held_out[0].answer, training_wordings=count_wordings(TRAINING),
        held_out_wordings=count_wordings(HELD_OUT)))


def draw(writer: Writer, count: int) -> list[Row]:
    """`count` rows of which no two have the same combination of things, name, city and day."""
    rows: dict[tuple[object, ...], Row] = {}
    while len(rows) < count:
        row = writer.row()
        rows.setdefault(row.combination, row)
    return list(rows.values())


def as_lines(rows: list[Row]) -> str:
    """Chat messages, one JSON object a line."""
    return "".join(json.dumps({"messages": [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": row.message},
        {"role": "assistant", "content": row.answer},
    ]}, ensure_ascii=False) + "\n" for row in rows)


def count_wordings(words: Words) -> int:
    """Frames, corrections and remarks of one half."""
    return sum(len(kind) for kind in words.wordings().values())


if __name__ == "__main__":
    main()
