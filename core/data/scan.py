"""What a dataset holds: the job behind the Data page and check-data."""

import math
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.config import DataConfig
from core.control import Control
from core.data.outline import Outline, outline_files
from core.data.prepare import STAGE, nothing_to_learn, read_batches
from core.data.scan_key import Warm, data_key, signatures
from core.data.template import RowEncoder, TokenisedRow
from core.errors import DataError
from core.events import DataScanned, Event, Progress, Result, to_plain
from core.jobs import ScanData
from core.models.kept_tokenizer import kept_tokenizer
from core.models.library import resolve

PROBLEMS_LISTED = 20
HISTOGRAM_BINS = 40
EXACT_BYTES = 8 * 2**20  # of files; of more, a sample is tokenised
SAMPLE_BATCH = 64  # rows of it tokenised at once


def scan_dataset(job: ScanData, control: Control, warm: Warm | None = None) -> Iterator[Event]:
    """Measure the training files with the model's tokenizer -> DataScanned, Result.

    What is wrong with the files or their rows does not end the scan: it stands in
    `DataScanned.problems`, one sentence each, with file and line. A run would refuse each of them.
    Of more than EXACT_BYTES all rows are read and checked, but a sample is tokenised.

    After `job.seconds` the scan ends with what it has so far (`DataScanned.measured` is below 1);
    the same job, asked again of the same `warm`, goes on from there.

    Raises:
        ModelError: no such model, or one without a usable tokenizer.
        DataError: the model's chat template can not be used.
    """
    warm = {} if warm is None else warm
    data, end = job.config.data, time.monotonic() + (job.seconds or math.inf)
    tokenizer = kept_tokenizer(resolve(job.config.model.path))
    key = data_key(job.config)
    kept, warm["data.scan"] = warm.get("data.scan"), None  # not to be gone on with if this raises
    scan = kept[1] if kept and kept[0] == key else _Scan(data, tokenizer)
    for progress in scan.steps:
        yield progress
        control.check()
        if time.monotonic() >= end:
            warm["data.scan"] = (key, scan)
            break
    else:
        scan.measured = 1.0
        warm["data.index"] = (signatures(data.train), scan.offsets)
    scanned = scan.scanned()
    yield scanned
    values = to_plain(scanned)
    del values["event"]
    yield Result(values)


def length_counts(lengths: NDArray[Any], longest: int) -> tuple[int, ...]:
    """How many rows lie in each of HISTOGRAM_BINS equal bins from 0 to `longest` tokens; `lengths` is (rows,)."""
    return tuple(np.histogram(lengths, bins=HISTOGRAM_BINS, range=(0, max(longest, 1)))[0].tolist())


class _Scan:
    """A scan that can be left and gone on with: take `steps` to their end."""

    def __init__(self, data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.measured = 0.0
        self._data = data
        self._encoder = RowEncoder(tokenizer, data.train_on, data.max_length)
        self._found = _Findings()
        sizes = [file.stat().st_size for file in map(Path, data.train) if file.is_file()]
        self._bytes = sum(sizes)
        self._outline = Outline() if self._bytes > EXACT_BYTES else None
        self.steps = self._tolerant(self._all() if self._outline is None else self._part(self._outline))

    @property
    def offsets(self) -> list[tuple[Path, NDArray[np.int64]]] | None:
        """Where the rows of each file begin, once all are read; None where that is not enough to find a row."""
        if self._outline is None or self._outline.has_texts:
            return None
        offsets = [(Path(name), self._outline.offsets.get(Path(name))) for name in self._data.train]
        return [(file, begins) for file, begins in offsets if begins is not None] \
            if all(begins is not None for _, begins in offsets) else None

    def scanned(self) -> DataScanned:
        """What is known so far."""
        return self._found.scanned(self._data, self._outline, self.measured)

    def _tolerant(self, steps: Iterator[Progress]) -> Iterator[Progress]:
        try:
            for progress in steps:
                self.measured = min(progress.done / max(progress.total, 1), 0.999)
                yield progress
        except DataError as error:
            self._found.report(error)

    def _all(self) -> Iterator[Progress]:
        """Tokenise every row."""
        for conversations, progress in read_batches(self._data, Control(), self._found.report):
            self._found.formats.update(dict.fromkeys(conversation.format for conversation in conversations))
            for item in self._encoder.encode(conversations, report=self._found.report):
                self._found.add(item)
            yield progress

    def _part(self, outline: Outline) -> Iterator[Progress]:
        """Read every row, then tokenise the sample."""
        self._found.formats = outline.formats
        for read in outline_files(self._data.train, outline, self._found.report):
            yield Progress(STAGE, read, self._bytes, "bytes")
        special = {(kept.file, kept.line): kept for kept in outline.special}
        for kept in outline.spread:
            special.pop((kept.file, kept.line), None)
        for rows, counts in ((outline.spread, True), (list(special.values()), False)):
            for first in range(0, len(rows), SAMPLE_BATCH):
                chosen = rows[first:first + SAMPLE_BATCH]
                for item in self._encoder.encode([part for kept in chosen for part in kept.conversations()],
                                                 report=self._found.report):
                    self._found.add(item, counts=counts)
                self._found.sampled += len(chosen) if counts else 0
                yield Progress(STAGE, self._bytes, self._bytes, "bytes")


class _Findings:
    """What a scan counts."""

    def __init__(self) -> None:
        self.formats: dict[str, None] = {}  # in the order in which they were met
        self._lengths = array("I")
        self._tokens = self._supervised = self._cut = self._without = self._cut_to_nothing = 0
        self._longest = 0
        self._problems: list[str] = []
        self._more = 0
        self.sampled = 0  # of the rows that an outline kept, those that were tokenised

    def report(self, error: DataError) -> None:
        """Note a row or file that can not be used."""
        if len(self._problems) < PROBLEMS_LISTED:
            self._problems.append(f"{error.message} {error.hint}".strip())
        else:
            self._more += 1

    def add(self, item: TokenisedRow, *, counts: bool = True) -> None:
        """Count a row; one that does not count only tells how long rows can be."""
        row = item.row
        self._longest = max(self._longest, row.length)
        if not counts:
            return
        supervised = int(row.supervised.sum())
        self._lengths.append(row.length)
        self._tokens += len(row)
        self._supervised += supervised
        self._cut += row.cut
        self._without += supervised == 0
        self._cut_to_nothing += row.cut and supervised == 0

    def scanned(self, data: DataConfig, outline: Outline | None, measured: float) -> DataScanned:
        """The event. With an outline, its sample stands for all rows that were read."""
        lengths = np.frombuffer(self._lengths, np.uint32) if self._lengths else np.zeros(0, np.uint32)
        counts = length_counts(lengths, self._longest)
        problems = list(self._problems)
        if self._more:
            problems.append(f"{self._more} more rows can not be used.")
        if len(lengths) and not self._supervised:
            error = nothing_to_learn(data, self._without, self._cut_to_nothing)
            problems.append(f"{error.message} {error.hint}")
        scale = outline.rows / max(self.sampled, 1) if outline is not None else 1
        rows = len(lengths) if outline is None else outline.rows
        if outline is not None and outline.has_texts and self.sampled:
            rows = round(scale * len(lengths))  # a text may become several
        return DataScanned(
            files=data.train, format=", ".join(self.formats), rows=rows, tokens=round(scale * self._tokens),
            supervised_tokens=round(scale * self._supervised), rows_cut=round(scale * self._cut),
            rows_without_supervision=round(scale * self._without), longest=self._longest,
            length_counts=tuple(round(scale * count) for count in counts), problems=tuple(problems),
            sampled=len(lengths) if outline is not None else 0, measured=measured)
