"""Tokenised rows on the disk: read back as they were, found again, and never mistaken for others."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_models import build_tokenizer

from core.config import DataConfig
from core.control import Control
from core.data import row_cache
from core.data.prepare import PreparedData, prepare_rows
from core.data.row_cache import entry_lock, entry_path, rows_root
from core.data.row_store import RowWriter, StoredRows, digest_of_all, is_whole, row_lengths
from core.data.template import EncodedRow
from core.errors import Cancelled, DataError
from core.events import Event, Progress, Warned

TOKENIZER = build_tokenizer()


def prepared(data: DataConfig, tokenizer=TOKENIZER, control: Control | None = None) -> tuple[PreparedData, list[Event]]:
    events, generator = [], prepare_rows(data, tokenizer, 0, control or Control())
    while True:
        try:
            events.append(next(generator))
        except StopIteration as end:
            return end.value, events


def write(tmp_path: Path, name: str = "rows.jsonl", count: int = 40, answer: str = "answer") -> str:
    rows = [{"prompt": f"question {n} " * (n % 9), "completion": f"{answer} {n}"} for n in range(count)]
    (tmp_path / name).write_text("\n".join(map(json.dumps, [*rows, {"prompt": "none", "completion": ""}])))
    return str(tmp_path / name)


def plain(rows) -> list[tuple]:
    return [(row.index, row.input_ids.tolist(), row.supervised.tolist(), row.cut, row.length) for row in rows]


def random_rows(count: int) -> list[EncodedRow]:
    choice = np.random.default_rng(0)
    return [EncodedRow(3 * n, choice.integers(0, 2**31 - 1, n % 20 + 1).astype(np.int32),
                       choice.random(n % 20 + 1) < 0.5, n % 3 == 0, 50 + n) for n in range(count)]


def test_rows_come_back_as_they_were(tmp_path):
    rows = random_rows(100)
    with RowWriter(tmp_path) as writer:
        for row in rows:
            writer.add(row)
    assert writer.largest_id == max(int(row.input_ids.max()) for row in rows)
    stored = StoredRows(tmp_path)
    assert plain(stored) == plain(rows) and plain(stored[90:200]) == plain(rows[90:])
    assert plain([stored[-1]]) == plain([rows[-1]])
    assert row_lengths(stored).tolist() == row_lengths(rows).tolist() == [len(row) for row in rows]
    assert plain(StoredRows(tmp_path, np.array([7, 3]))) == plain([rows[7], rows[3]])
    assert stored[4].input_ids.dtype == np.int32 and stored[4].supervised.dtype == np.bool_
    with pytest.raises(IndexError):
        stored[100]


def test_the_digest_of_all_tells_ids_supervision_and_order(tmp_path):
    def digest(rows, *choices):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with RowWriter(folder) as writer:
            for row in rows:
                writer.add(row)
        return digest_of_all(*(StoredRows(folder, np.array(choice, np.int64)) for choice in choices))

    rows = random_rows(20)
    other_ids, other_supervision = random_rows(20), random_rows(20)
    other_ids[3].input_ids[0] += 1
    other_supervision[3].supervised[0] ^= True
    whole = digest(rows, [0, 1, 3], [2])
    assert whole == digest(rows, [0, 1, 3], [2])
    assert len({whole, digest(rows, [1, 0, 3], [2]), digest(rows, [0, 1], [3, 2]), digest(rows, [0, 1, 3], []),
                digest(other_ids, [0, 1, 3], [2]), digest(other_supervision, [0, 1, 3], [2])}) == 6
    assert digest_of_all(rows) != digest_of_all(rows[1:]) and digest_of_all(rows) == digest_of_all(random_rows(20))


def test_threads_may_read_at_once(tmp_path):
    rows = random_rows(500)
    with RowWriter(tmp_path) as writer:
        for row in rows:
            writer.add(row)
    stored, wrong = StoredRows(tmp_path), []

    def read() -> None:
        wrong.extend(n for n in range(500) if stored[n].input_ids.tolist() != rows[n].input_ids.tolist())

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_files_that_were_cut_off_are_not_whole(tmp_path):
    with RowWriter(tmp_path) as writer:
        for row in random_rows(9):
            writer.add(row)
    stored = StoredRows(tmp_path)
    assert is_whole(tmp_path, 9) and not is_whole(tmp_path, 8) and not is_whole(tmp_path / "none", 9)
    os.truncate(tmp_path / "tokens.bin", (tmp_path / "tokens.bin").stat().st_size - 1)
    assert not is_whole(tmp_path, 9)
    with pytest.raises(DataError, match="cut off"):
        stored[8]


def test_the_second_run_makes_no_rows(tmp_path, monkeypatch):
    data = DataConfig(train=(write(tmp_path),), max_length=64)
    first, events = prepared(data)
    monkeypatch.setattr("core.data.template.RowEncoder.encode", lambda *args, **values: pytest.fail("tokenised again"))
    again, later = prepared(data)
    assert plain(again.train) == plain(first.train) and plain(again.validation) == plain(first.validation)
    assert (again.dropped, again.cut, again.largest_id) == (first.dropped, first.cut, first.largest_id) == (
        12, 15, max(int(row.input_ids.max()) for row in (*first.train, *first.validation)))
    assert [event for event in events if not isinstance(event, Progress)] == later
    assert any(isinstance(event, Warned) for event in later)
    copied = tmp_path / "copy.jsonl"  # the content counts, not the name
    copied.write_bytes(Path(data.train[0]).read_bytes())
    assert plain(prepared(DataConfig(train=(str(copied),), max_length=64))[0].train) == plain(first.train)


def test_what_rows_depend_on_makes_another_entry(tmp_path):
    file, other = write(tmp_path), write(tmp_path, "other.jsonl", answer="Antwort")
    template = build_tokenizer()
    template.chat_template = template.chat_template + "{# other #}"
    vocabulary = build_tokenizer()
    vocabulary.add_tokens(["answer"])
    paths = [entry_path(data, tokenizer, Control()) for data, tokenizer in (
        (DataConfig(train=(file,)), TOKENIZER), (DataConfig(train=(other,)), TOKENIZER),
        (DataConfig(train=(file, other)), TOKENIZER), (DataConfig(train=(other, file)), TOKENIZER),
        (DataConfig(train=(file,), max_length=64), TOKENIZER), (DataConfig(train=(file,), train_on="all"), TOKENIZER),
        (DataConfig(train=(file,)), template), (DataConfig(train=(file,)), vocabulary))]
    assert len(set(paths)) == len(paths)
    assert entry_path(DataConfig(train=(file,), validation_fraction=0.5), build_tokenizer(), Control()) == paths[0]
    os.utime(file, (0, 0))
    assert entry_path(DataConfig(train=(file,)), TOKENIZER, Control()) == paths[0]


@pytest.mark.parametrize("damage", ["tokens.bin", "rows.bin", "digests.bin", "summary.json"])
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    data = DataConfig(train=(write(tmp_path),))
    first, _ = prepared(data)
    rows = plain(first.train)
    entry = entry_path(data, TOKENIZER, Control())
    os.truncate(entry / damage, 10)
    assert plain(prepared(data)[0].train) == rows
    assert sorted(path.name for path in rows_root().iterdir()) == [entry.name]


def test_nothing_is_left_of_a_run_that_was_stopped_or_refused(tmp_path):
    data = DataConfig(train=(write(tmp_path, count=600),))
    control = Control()
    generator = prepare_rows(data, TOKENIZER, 0, control)
    next(generator)
    control.stop()
    with pytest.raises(Cancelled):
        list(generator)
    Path(data.train[0]).write_text('{"prompt": "q", "completion": "a"}\n{"x": 1}')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2"):
        prepared(data)
    assert list(rows_root().iterdir()) == []


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    data = DataConfig(train=(write(tmp_path, count=600),))
    generator = prepare_rows(data, TOKENIZER, 0, Control())
    next(generator)
    with open(data.train[0], "a", encoding="utf-8") as file:
        file.write('\n{"prompt": "q", "completion": "a"}')
    with pytest.raises(DataError, match="changed while"):
        list(generator)


def test_the_cache_is_bounded(tmp_path, monkeypatch):
    files = [write(tmp_path, f"{n}.jsonl", answer=f"answer {n}") for n in range(3)]
    entries = []
    for number, file in enumerate(files):
        prepared(DataConfig(train=(file,)))
        entries.append(entry_path(DataConfig(train=(file,)), TOKENIZER, Control()))
        os.utime(entries[-1], (number, number))
    size = sum(file.stat().st_size for file in entries[0].iterdir())
    remains = rows_root() / ".work.x.tmp"
    remains.mkdir()
    os.utime(remains, (0, 0))
    prepared(DataConfig(train=(files[0],)))  # used, so the second one is the oldest now
    monkeypatch.setattr(row_cache, "CACHE_BYTES", int(2.5 * size))
    prepared(DataConfig(train=(write(tmp_path, "new.jsonl", answer="new"),)))
    assert [entry.exists() for entry in entries] == [True, False, False]
    monkeypatch.setattr(row_cache, "CACHE_BYTES", 0)
    train = prepared(DataConfig(train=(files[1],)))[0].train
    assert len(list(rows_root().iterdir())) == 1 and len(plain(train)) == len(train)


def test_a_run_waits_for_another_that_makes_the_same_rows(tmp_path):
    data = DataConfig(train=(write(tmp_path),))
    control, ended = Control(), []
    with entry_lock(entry_path(data, TOKENIZER, Control()), Control()):
        thread = threading.Thread(target=lambda: ended.append(prepared(data, control=Control())))
        thread.start()
        thread.join(0.5)
        assert not ended
        control.stop()
        with pytest.raises(Cancelled):
            prepared(data, control=control)
    thread.join(20)
    assert len(ended) == 1


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RowWriter, "add", full)
    with pytest.raises(DataError, match=r"can not be kept in .*: No space left on device") as caught:
        prepared(DataConfig(train=(write(tmp_path),)))
    assert "GB free" in caught.value.hint
