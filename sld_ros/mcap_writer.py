"""Writing mcap files (https://mcap.dev/spec) that are complete at any time, so that a recorder that
is killed loses at most what it had not flushed.

Other writers add index and footer when a file is closed. This one keeps a footer at the end of the
file from the start, and before it a record of free space that readers skip. A flush writes a chunk
and a new summary into the free space, and makes them visible in two steps: the head of the chunk,
which was the head of the free space until then, and the footer, which points to the new summary.
Old summaries stay behind, each inside a record that readers skip."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

MAGIC = b"\x89MCAP0\r\n"
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, CHUNK_INDEX = range(1, 9)
STATISTICS, DATA_END = 11, 15
SKIPPED = 0x80  # an opcode for private use: readers skip the record
SPACE_BYTES = 2**24  # free space is added in steps of about this
PAGE_BYTES = 4096
HEAD_BYTES = 9  # opcode and length of a record


class McapWriter:
    """An uncompressed mcap file of ROS 2 messages that readers find complete whenever its writer is
    killed."""

    def __init__(self, path: Path):
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        self.span_ns = 0, 0  # times of the first and the last message flushed
        self.saved_counts: dict[int, int] = {}  # channel -> messages in the summary on the disk
        self._schemas: dict[str, int] = {}
        self._definitions: list[bytes] = []  # schema and channel records, repeated in the summary
        self._counts: dict[int, int] = {}
        self._chunk_indexes: list[bytes] = []
        self._chunk = _Chunk()
        self._end = 0  # where the next chunk goes
        self._filler_start = 0  # of the record between the summary and the footer
        self._footer_start = 0
        self._summary_start = 0
        self._append(MAGIC + _record(HEADER, _string("ros2") + _string("sld")))

    @property
    def pending_bytes(self) -> int:
        """What a kill would lose now."""
        return self._chunk.size

    def add_channel(self, topic: str, type_name: str, definition: str, qos_yaml: str) -> int:
        """A topic's channel; `definition` is the full message definition in ros2msg text."""
        if type_name not in self._schemas:
            self._schemas[type_name] = len(self._schemas) + 1
            number = struct.pack("<H", self._schemas[type_name])
            text = _string(type_name) + _string("ros2msg") + _string(definition)
            self._define(SCHEMA, number + text)
        channel = len(self._counts) + 1
        numbers = struct.pack("<HH", channel, self._schemas[type_name])
        metadata = _sized(_string("offered_qos_profiles") + _string(qos_yaml))
        self._define(CHANNEL, numbers + _string(topic) + _string("cdr") + metadata)
        self._counts[channel] = 0
        return channel

    def write(self, channel: int, time_ns: int, data: bytes) -> None:
        """Add a serialized message; it reaches the disk with the next flush."""
        self._chunk.times.setdefault(channel, []).append((time_ns, self._chunk.size))
        head = struct.pack("<HIQQ", channel, 0, time_ns, time_ns)
        self._chunk.append(_record(MESSAGE, head + data))
        self._counts[channel] += 1

    def flush(self) -> None:
        """Write what is pending, once there is a message: rosbag2 of Jazzy reads nothing in order
        of time from a file with a chunk of definitions alone."""
        if not self._chunk.times:
            return
        start, end = self._chunk.span_ns
        if any(self.span_ns):
            start, end = min(start, self.span_ns[0]), max(end, self.span_ns[1])
        self.span_ns = start, end
        self._append(*self._chunk.encode(self._end))
        self._chunk = _Chunk()

    def close(self) -> None:
        """Flush, and end the file without free space."""
        try:
            self.flush()
            data_end = _record(DATA_END, struct.pack("<I", 0))
            tail = (
                data_end + self._summary(self._chunk_indexes) + _footer(self._end + len(data_end))
            )
            self._reserve(len(tail))
            _write_all(self._fd, tail, self._end)
            os.ftruncate(self._fd, self._end + len(tail))
            self.saved_counts = dict(self._counts)
        finally:
            os.close(self._fd)

    def _define(self, kind: int, body: bytes) -> None:
        self._definitions.append(_record(kind, body))
        self._chunk.append(self._definitions[-1])

    def _append(self, data: bytes, *chunk_index: bytes) -> None:
        """Write records and a new summary behind them into the free space. Whoever reads the file
        meanwhile finds it as before, or with the records, but always whole."""
        chunk_indexes = [*self._chunk_indexes, *chunk_index]
        summary = self._summary(chunk_indexes)
        # what reads from the front skips the summary; what reads it ends with its filler
        skipped = len(summary) + HEAD_BYTES
        self._reserve(len(data) + skipped + 2 * HEAD_BYTES)
        summary_start = self._end + len(data) + HEAD_BYTES
        filler_start = summary_start + len(summary)
        end = filler_start + HEAD_BYTES
        filler = self._head_of_space(filler_start)
        new = data + _head(SKIPPED, skipped) + summary + filler + self._head_of_space(end)
        _write_all(self._fd, new[HEAD_BYTES:], self._end + HEAD_BYTES)
        _write_all(self._fd, new[:HEAD_BYTES], self._end)
        _write_all(self._fd, _footer(summary_start), self._footer_start)
        self._end, self._filler_start, self._summary_start = end, filler_start, summary_start
        self._chunk_indexes = chunk_indexes
        self.saved_counts = dict(self._counts)

    def _reserve(self, size: int) -> None:
        """Make free space for `size` bytes, by a footer further behind."""
        if self._end + size <= self._footer_start:
            return
        pages = -(-(self._end + size + SPACE_BYTES) // PAGE_BYTES)
        footer = _footer(self._summary_start)
        footer_start = pages * PAGE_BYTES - len(footer)  # in one page: written at once
        _write_all(self._fd, footer, footer_start)
        self._footer_start = footer_start
        if self._summary_start:
            # until both are written, readers find the old footer
            _write_all(self._fd, self._head_of_space(self._end), self._end)
            _write_all(self._fd, self._head_of_space(self._filler_start), self._filler_start)

    def _head_of_space(self, start: int) -> bytes:
        """The head of a skipped record that reaches from `start` to the footer."""
        return _head(SKIPPED, self._footer_start - start - HEAD_BYTES)

    def _summary(self, chunk_indexes: list[bytes]) -> bytes:
        """Definitions, chunk indexes and statistics."""
        counts = b"".join(struct.pack("<HQ", *item) for item in self._counts.items())
        statistics = struct.pack(
            "<QHIIIIQQ",
            sum(self._counts.values()),
            len(self._schemas),
            len(self._counts),
            0,
            0,
            len(chunk_indexes),
            *self.span_ns,
        )
        records = b"".join(self._definitions) + b"".join(chunk_indexes)
        return records + _record(STATISTICS, statistics + _sized(counts))


class _Chunk:
    """Records that wait to be written together."""

    def __init__(self):
        self.records: list[bytes] = []
        self.size = 0
        # channel -> time and offset of its messages
        self.times: dict[int, list[tuple[int, int]]] = {}

    @property
    def span_ns(self) -> tuple[int, int]:
        times = [time for entries in self.times.values() for time, _ in entries]
        return min(times), max(times)

    def append(self, record: bytes) -> None:
        self.records.append(record)
        self.size += len(record)

    def encode(self, place: int) -> tuple[bytes, bytes]:
        """Chunk and message index records to write at `place`, and the chunk index record for the
        summary."""
        records = b"".join(self.records)
        span = struct.pack("<QQ", *self.span_ns)
        size = struct.pack("<Q", len(records))
        crc = struct.pack("<I", zlib.crc32(records))
        chunk = _record(CHUNK, span + size + crc + _string("") + size + records)
        indexes, offsets = b"", b""
        for channel, entries in self.times.items():
            offsets += struct.pack("<HQ", channel, place + len(chunk) + len(indexes))
            body = _sized(b"".join(struct.pack("<QQ", *entry) for entry in entries))
            indexes += _record(MESSAGE_INDEX, struct.pack("<H", channel) + body)
        lengths = struct.pack("<QQ", place, len(chunk)), struct.pack("<Q", len(indexes))
        index = span + lengths[0] + _sized(offsets) + lengths[1] + _string("") + size + size
        return chunk + indexes, _record(CHUNK_INDEX, index)


def _footer(summary_start: int) -> bytes:
    return _record(FOOTER, struct.pack("<QQI", summary_start, 0, 0)) + MAGIC


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _record(kind: int, body: bytes) -> bytes:
    return _head(kind, len(body)) + body


def _head(kind: int, length: int) -> bytes:
    return struct.pack("<BQ", kind, length)


def _sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _string(text: str) -> bytes:
    return _sized(text.encode())
