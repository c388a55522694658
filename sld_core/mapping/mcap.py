"""Writing and reading mcap files so that a killed recorder loses at most what it had not flushed (https://mcap.dev/spec).

`rosbags` writes index and footer when a file is closed and reads no file without them: a recorder that dies takes the
drive with it. `McapWriter` leaves a complete file after every flush; `scan` reads what a broken file still holds."""
from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sld_core.types import SldError

log = logging.getLogger(__name__)

MAGIC = b"\x89MCAP0\r\n"
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, CHUNK_INDEX, STATISTICS, DATA_END = 1, 2, 3, 4, 5, 6, 7, 8, 11, 15


class Message(NamedTuple):
    topic: str
    type: str
    time_ns: int  # when it was recorded
    data: bytes  # CDR


class McapWriter:
    """An mcap file of ROS 2 messages, uncompressed, complete on disk after every `flush`."""

    def __init__(self, path: Path):
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        head = MAGIC + _record(HEADER, _string("ros2") + _string("sld"))
        self._data_end = os.pwrite(self._fd, head, 0)
        self._schemas: dict[str, int] = {}
        self._definitions: list[bytes] = []  # schema and channel records, repeated in the summary
        self._counts: dict[int, int] = {}
        self._chunk_indexes: list[bytes] = []
        self.span_ns = 0, 0  # times of the first and the last message written
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._pending_times: dict[int, list[tuple[int, int]]] = {}  # channel -> (time, offset in the chunk)
        self._flush_file()

    @property
    def pending_bytes(self) -> int:
        """What a kill would lose now."""
        return self._pending_bytes

    def add_channel(self, topic: str, type_name: str, definition: str, qos_yaml: str) -> int:
        """A topic's channel; `definition` is the full message definition in ros2msg text."""
        if type_name not in self._schemas:
            self._schemas[type_name] = len(self._schemas) + 1
            self._define(SCHEMA, struct.pack("<H", self._schemas[type_name]) + _string(type_name) + _string("ros2msg") + _string(definition))
        channel = len(self._counts) + 1
        metadata = _string("offered_qos_profiles") + _string(qos_yaml)
        self._define(CHANNEL, struct.pack("<HH", channel, self._schemas[type_name]) + _string(topic) + _string("cdr") + _sized(metadata))
        self._counts[channel] = 0
        return channel

    def write(self, channel: int, time_ns: int, data: bytes) -> None:
        """Add a serialized message; it reaches the disk with the next flush."""
        self._pending_times.setdefault(channel, []).append((time_ns, self._pending_bytes))
        self._append(_record(MESSAGE, struct.pack("<HIQQ", channel, 0, time_ns, time_ns) + data))
        self._counts[channel] += 1

    def flush(self) -> None:
        """Write what is pending as one chunk, and the file's summary behind it."""
        if self._pending:
            self._flush_file(self._close_chunk())

    def close(self) -> None:
        self.flush()
        os.close(self._fd)

    def _define(self, kind: int, body: bytes) -> None:
        self._definitions.append(_record(kind, body))
        self._append(self._definitions[-1])

    def _append(self, record: bytes) -> None:
        self._pending.append(record)
        self._pending_bytes += len(record)

    def _flush_file(self, data: bytes = b"") -> None:
        """Put data over the old summary and a new, longer summary behind it, in one call to the system."""
        summary_start = self._data_end + len(data) + len(_DATA_END)
        _write_all(self._fd, data + _DATA_END + self._summary(summary_start), self._data_end)
        self._data_end += len(data)

    def _close_chunk(self) -> bytes:
        records = b"".join(self._pending)
        times = [time for entries in self._pending_times.values() for time, _ in entries]
        start, end = (min(times), max(times)) if times else (0, 0)
        if times:
            old = self.span_ns if any(self.span_ns) else (start, end)
            self.span_ns = min(start, old[0]), max(end, old[1])
        chunk = _record(CHUNK, struct.pack("<QQQI", start, end, len(records), zlib.crc32(records)) + _string("")
                        + struct.pack("<Q", len(records)) + records)
        indexes, offsets = b"", b""
        for channel, entries in self._pending_times.items():
            offsets += struct.pack("<HQ", channel, self._data_end + len(chunk) + len(indexes))
            indexes += _record(MESSAGE_INDEX, struct.pack("<H", channel) + _sized(b"".join(struct.pack("<QQ", *e) for e in entries)))
        self._chunk_indexes.append(_record(CHUNK_INDEX, struct.pack("<QQQQ", start, end, self._data_end, len(chunk)) + _sized(offsets)
                                           + struct.pack("<Q", len(indexes)) + _string("") + struct.pack("<QQ", len(records), len(records))))
        self._pending, self._pending_bytes, self._pending_times = [], 0, {}
        return chunk + indexes

    def _summary(self, start: int) -> bytes:
        """Definitions, statistics and chunk indexes, then footer and closing magic; `start` is its place in the file."""
        counts = b"".join(struct.pack("<HQ", *item) for item in self._counts.items())
        statistics = struct.pack("<QHIIIIQQ", sum(self._counts.values()), len(self._schemas), len(self._counts), 0, 0,
                                 len(self._chunk_indexes), *self.span_ns) + _sized(counts)
        summary = b"".join(self._definitions) + b"".join(self._chunk_indexes) + _record(STATISTICS, statistics)
        return summary + _record(FOOTER, struct.pack("<QQI", start, 0, 0)) + MAGIC


def scan(path: Path) -> Iterator[Message]:
    """Messages in the order of the file, without using its index; a file that ends early gives one warning."""
    channels: dict[int, tuple[str, str]] = {}
    schemas: dict[int, str] = {}
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise SldError(f"{path}: not an mcap file")
        for kind, body in _data_records(file, path):
            try:
                if kind == SCHEMA:
                    schemas[_uint16(body, 0)] = _text(body, 2)[0]
                elif kind == CHANNEL:
                    channels[_uint16(body, 0)] = _text(body, 4)[0], schemas.get(_uint16(body, 2), "")
                elif kind == MESSAGE and _uint16(body, 0) in channels:
                    yield Message(*channels[_uint16(body, 0)], struct.unpack_from("<Q", body, 6)[0], bytes(body[22:]))
            except (struct.error, UnicodeDecodeError) as error:
                raise SldError(f"{path}: malformed mcap record of kind {kind} ({error})") from error


def _data_records(file, path: Path) -> Iterator[tuple[int, memoryview]]:
    """Records of the data section, those inside chunks included."""
    size = os.fstat(file.fileno()).st_size
    while (record := _read_record(file, size)) is not None:
        kind, body = record
        if kind == DATA_END:
            return
        if kind != CHUNK:
            yield kind, body
            continue
        records = _unpack_chunk(body)
        if records is None:
            break
        while len(records) >= 9:
            length = 9 + struct.unpack_from("<Q", records, 1)[0]
            yield records[0], records[9:length]
            records = records[length:]
    log.warning("%s is cut off or damaged after %.1f MB of %.1f MB: only the part before is used", path, file.tell() / 1e6, size / 1e6)


def _read_record(file, size: int) -> tuple[int, memoryview] | None:
    head = file.read(9)
    length = struct.unpack_from("<Q", head, 1)[0] if len(head) == 9 else size
    return (head[0], memoryview(file.read(length))) if file.tell() + length <= size else None


def _unpack_chunk(body: memoryview) -> memoryview | None:
    """The records in a chunk, or None when it is damaged."""
    _, _, _, crc = struct.unpack_from("<QQQI", body)
    compression, at = _text(body, 28)
    records = body[at + 8:]
    if compression:
        from rosbags.rosbag2.storage_mcap import DECOMPRESSORS  # with the libraries that rosbags brings
        if compression not in DECOMPRESSORS:
            raise SldError(f"mcap chunk compression {compression!r}: expected {', '.join(filter(None, DECOMPRESSORS))} or none")
        try:
            records = memoryview(DECOMPRESSORS[compression](bytes(records), 0))
        except Exception as error:  # each compression library has errors of its own
            log.warning("a chunk cannot be decompressed: %s", error)
            return None
    return records if crc in (0, zlib.crc32(records)) else None


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _record(kind: int, body: bytes) -> bytes:
    return struct.pack("<BQ", kind, len(body)) + body


def _sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _string(text: str) -> bytes:
    return _sized(text.encode())


def _uint16(body: memoryview, at: int) -> int:
    return struct.unpack_from("<H", body, at)[0]


def _text(body: memoryview, at: int) -> tuple[str, int]:
    """A string at an offset, and the offset behind it."""
    end = at + 4 + struct.unpack_from("<I", body, at)[0]
    return bytes(body[at + 4:end]).decode(), end


_DATA_END = _record(DATA_END, struct.pack("<I", 0))
