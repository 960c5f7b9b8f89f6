"""``hmmfs export``: a recording in formats of other programs."""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Callable, Iterator
from typing import Any

from hmmfs.common.names import printable
from hmmfs.errors import HmmfsError
from hmmfs.inspect.mount.trace import Event
from hmmfs.inspect.record.perfetto import trace_events
from hmmfs.inspect.record.progress import bar
from hmmfs.inspect.record.recording import Progress, Recording

BATCH = 1 << 16  # rows of a parquet file that are held in memory

# In the order of Event's fields, named as in a recording.
COLUMNS = (
    "t",
    "device",
    "event",
    "region",
    "first",
    "pages",
    "from",
    "to",
    "trigger",
    "bytes",
    "us",
    "sim_us",
)
WORDS = ("device", "event", "region", "from", "to", "trigger")
COUNTS = ("first", "pages", "bytes")

Row = tuple[float | int | str, ...]


def export(recording: str, form: str, path: str) -> None:
    """Write ``path`` in the form, one of FORMS. OSError, HmmfsError: a file can't be used."""
    with bar("Exporting") as show:
        _WRITERS[form](recording, path, show)


def _rows(recording: Recording, progress: Progress) -> Iterator[Row]:
    """Every event, its names in characters that any file can hold."""
    for record in recording.records(progress):
        if isinstance(record, Event):
            yield tuple(printable(value) if isinstance(value, str) else value for value in record)


def _perfetto(recording: str, path: str, progress: Progress) -> None:
    Recording(recording).close()  # before the other file is made
    with open(path, "w", encoding="ascii") as file:
        file.write('{"displayTimeUnit":"ns","traceEvents":[')
        for number, event in enumerate(trace_events(recording, progress)):
            file.write(",\n" if number else "\n")
            file.write(json.dumps(event, separators=(",", ":"), allow_nan=False))
        file.write("\n]}\n")


def _csv(recording: str, path: str, progress: Progress) -> None:
    with Recording(recording) as opened, open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for t, *rest in _rows(opened, progress):
            writer.writerow([f"{t:.9f}", *rest])


def _parquet(recording: str, path: str, progress: Progress) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise HmmfsError(
            errno.ENOPKG, "Parquet files need pyarrow: pip install 'hmmfs[parquet]'."
        ) from None
    kinds: dict[str, Any] = dict.fromkeys(COLUMNS, pyarrow.float64())
    kinds |= dict.fromkeys(COUNTS, pyarrow.int64())
    kinds |= dict.fromkeys(WORDS, pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
    schema = pyarrow.schema(list(kinds.items()))

    def store(batch: list[Row]) -> None:
        columns = zip(*batch, strict=True) if batch else ([] for _ in COLUMNS)
        arrays = [
            pyarrow.array(list(column), kinds[name])
            for name, column in zip(COLUMNS, columns, strict=True)
        ]
        writer.write_table(pyarrow.table(arrays, schema=schema))

    with (
        Recording(recording) as opened,
        open(path, "wb") as file,
        pyarrow.parquet.ParquetWriter(file, schema) as writer,
    ):
        batch: list[Row] = []
        for row in _rows(opened, progress):
            batch.append(row)
            if len(batch) == BATCH:
                store(batch)
                batch = []
        store(batch)


_WRITERS: dict[str, Callable[[str, str, Progress], None]] = {
    "perfetto": _perfetto,
    "csv": _csv,
    "parquet": _parquet,
}
FORMS = {"perfetto": ".trace.json", "csv": ".csv", "parquet": ".parquet"}
