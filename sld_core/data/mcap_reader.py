"""Writing and reading mcap files so that a killed recorder loses at most what it had not flushed
(https://mcap.dev/spec).

`rosbags` writes index and footer when a file is closed and reads no file without them: a recorder
that dies takes the drive with it. A file of `McapWriter` is complete at any time; `scan` reads what
a broken file of others still holds.

While it is written, the file ends in unwritten space and a footer behind it. A flush puts a chunk
and a new summary into that space; then eight bytes in the footer switch from the old summary to the
new one. Old summaries stay behind, each inside a private record that readers skip."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sld_core.types import SldError

log = logging.getLogger(__name__)

MAGIC = b"\x89MCAP0\r\n"
(
    HEADER,
    FOOTER,
    SCHEMA,
    CHANNEL,
    MESSAGE,
    CHUNK,
    MESSAGE_INDEX,
    CHUNK_INDEX,
    STATISTICS,
    DATA_END,
) = 1, 2, 3, 4, 5, 6, 7, 8, 11, 15
UNWRITTEN, PRIVATE = 0, 0x80
SPACE_BYTES = 2**24  # unwritten space is added in steps of about this
MAX_CHUNK_BYTES = 2**30  # unpacked; those of recorders have a few megabytes
COMPRESSIONS = "lz4", "zstd"


class Message(NamedTuple):
    topic: str
    type: str
    time_ns: int  # when it was recorded
    data: bytes  # CDR


class McapWriter:
    """An mcap file of ROS 2 messages, uncompressed, that readers find complete whenever its writer
    is killed."""

    def __init__(self, path: Path):
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        self.span_ns = 0, 0  # times of the first and the last message written
        self._schemas: dict[str, int] = {}
        self._definitions: list[bytes] = []  # schema and channel records, repeated in the summary
        self._counts: dict[int, int] = {}
        self.saved_counts: dict[
            int, int
        ] = {}  # channel -> messages that the summary on the disk knows
        self._chunk_indexes: list[bytes] = []
        self._chunk = _Chunk()
        head = MAGIC + _record(HEADER, _string("ros2") + _string("sld"))
        _write_all(self._fd, head, 0)
        self._end = len(head)  # where the next chunk goes
        self._summary_start = self._padding_start = (
            0  # of the summary in force, and of the padding behind it
        )
        self._footer_start = 0
        self._write_summary()

    @property
    def pending_bytes(self) -> int:
        """What a kill would lose now."""
        return self._chunk.size

    def add_channel(self, topic: str, type_name: str, definition: str, qos_yaml: str) -> int:
        """A topic's channel; `definition` is the full message definition in ros2msg text."""
        if type_name not in self._schemas:
            self._schemas[type_name] = len(self._schemas) + 1
            number = struct.pack("<H", self._schemas[type_name])
            self._define(
                SCHEMA, number + _string(type_name) + _string("ros2msg") + _string(definition)
            )
        channel = len(self._counts) + 1
        metadata = _string("offered_qos_profiles") + _string(qos_yaml)
        self._define(
            CHANNEL,
            struct.pack("<HH", channel, self._schemas[type_name])
            + _string(topic)
            + _string("cdr")
            + _sized(metadata),
        )
        self._counts[channel] = 0
        return channel

    def write(self, channel: int, time_ns: int, data: bytes) -> None:
        """Add a serialized message; it reaches the disk with the next flush."""
        self._chunk.times.setdefault(channel, []).append((time_ns, self._chunk.size))
        self._chunk.append(
            _record(MESSAGE, struct.pack("<HIQQ", channel, 0, time_ns, time_ns) + data)
        )
        self._counts[channel] += 1

    def flush(self) -> None:
        """Write what is pending."""
        if not self._chunk.size:
            return
        if self._chunk.times:
            start, end = self._chunk.span_ns
            self.span_ns = (
                (min(start, self.span_ns[0]), max(end, self.span_ns[1]))
                if any(self.span_ns)
                else (start, end)
            )
        data, index = self._chunk.encode(self._end)
        self._reserve(len(data))
        _write_all(self._fd, data, self._end)
        self._end += len(data)
        self._chunk_indexes.append(index)
        self._chunk = _Chunk()
        self._write_summary()

    def close(self) -> None:
        """Flush, and end the file without unwritten space."""
        try:
            self.flush()
            data_end = _record(DATA_END, struct.pack("<I", 0))
            tail = data_end + self._summary() + _footer(self._end + len(data_end))
            self._reserve(len(tail))
            _write_all(self._fd, tail, self._end)
            os.ftruncate(self._fd, self._end + len(tail))
            self.saved_counts = dict(self._counts)
        finally:
            os.close(self._fd)

    def _define(self, kind: int, body: bytes) -> None:
        self._definitions.append(_record(kind, body))
        self._chunk.append(self._definitions[-1])

    def _write_summary(self) -> None:
        """Put a summary behind the data, then let the footer point to it."""
        summary = self._summary()
        self._reserve(len(summary) + 2 * _HEAD)
        start = self._end + _HEAD
        padding_start = start + len(summary)
        padding = struct.pack("<BQ", PRIVATE, self._footer_start - padding_start - _HEAD)
        _write_all(self._fd, _record(PRIVATE, summary + padding), self._end)
        os.pwrite(self._fd, _footer(start), self._footer_start)
        self._end, self._summary_start, self._padding_start = (
            padding_start + _HEAD,
            start,
            padding_start,
        )
        self.saved_counts = dict(self._counts)

    def _reserve(self, size: int) -> None:
        """Make unwritten space for `size` bytes, by another footer further behind."""
        if self._end + size <= self._footer_start:
            return
        self._footer_start = -(-(self._end + size + SPACE_BYTES) // _PAGE) * _PAGE - len(
            _footer(0)
        )  # within one page: written at once
        if self._summary_start:
            os.pwrite(
                self._fd,
                struct.pack("<BQ", PRIVATE, self._footer_start - self._padding_start - _HEAD),
                self._padding_start,
            )
            os.pwrite(self._fd, _footer(self._summary_start), self._footer_start)

    def _summary(self) -> bytes:
        """Definitions, chunk indexes and statistics."""
        counts = b"".join(struct.pack("<HQ", *item) for item in self._counts.items())
        statistics = struct.pack(
            "<QHIIIIQQ",
            sum(self._counts.values()),
            len(self._schemas),
            len(self._counts),
            0,
            0,
            len(self._chunk_indexes),
            *self.span_ns,
        ) + _sized(counts)
        return (
            b"".join(self._definitions)
            + b"".join(self._chunk_indexes)
            + _record(STATISTICS, statistics)
        )


class _Chunk:
    """Records that wait to be written together."""

    def __init__(self):
        self.records: list[bytes] = []
        self.size = 0
        self.times: dict[
            int, list[tuple[int, int]]
        ] = {}  # channel -> time and offset of its messages

    @property
    def span_ns(self) -> tuple[int, int]:
        times = [time for entries in self.times.values() for time, _ in entries]
        return min(times, default=0), max(times, default=0)

    def append(self, record: bytes) -> None:
        self.records.append(record)
        self.size += len(record)

    def encode(self, place: int) -> tuple[bytes, bytes]:
        """Chunk and message index records to write at `place`, and the chunk index record for the
        summary."""
        records = b"".join(self.records)
        span = struct.pack("<QQ", *self.span_ns)
        size = struct.pack("<Q", len(records))
        chunk = _record(
            CHUNK,
            span + size + struct.pack("<I", zlib.crc32(records)) + _string("") + size + records,
        )
        indexes, offsets = b"", b""
        for channel, entries in self.times.items():
            offsets += struct.pack("<HQ", channel, place + len(chunk) + len(indexes))
            indexes += _record(
                MESSAGE_INDEX,
                struct.pack("<H", channel)
                + _sized(b"".join(struct.pack("<QQ", *e) for e in entries)),
            )
        index = (
            span
            + struct.pack("<QQ", place, len(chunk))
            + _sized(offsets)
            + struct.pack("<Q", len(indexes))
            + _string("")
            + size
            + size
        )
        return chunk + indexes, _record(CHUNK_INDEX, index)


def warn(path: Path, what: str) -> None:
    """Log what is wrong with a file."""
    log.warning("%s is %s", path, what)


def scan(path: Path, tell: Callable[[Path, str], None] = warn) -> Iterator[Message]:
    """Messages in the order of the file, without using its index; of a file that ends early `tell`
    hears."""
    channels: dict[int, tuple[str, str]] = {}
    schemas: dict[int, str] = {}
    if not path.is_file():  # to open a pipe is to wait for its writer
        raise SldError(
            f"{path}: {'no file' if path.exists() else 'no such file'}; expected an mcap file"
        )
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise SldError(f"{path}: not an mcap file")
        for kind, body in _data_records(file, path, tell):
            try:
                if kind == SCHEMA:
                    schemas[_uint16(body, 0)] = _text(body, 2)[0]
                elif kind == CHANNEL:
                    channels[_uint16(body, 0)] = (
                        _text(body, 4)[0],
                        schemas.get(_uint16(body, 2), ""),
                    )
                elif kind == MESSAGE and _uint16(body, 0) in channels:
                    yield Message(
                        *channels[_uint16(body, 0)],
                        struct.unpack_from("<Q", body, 6)[0],
                        bytes(body[22:]),
                    )
            except (struct.error, UnicodeDecodeError) as error:
                raise SldError(f"{path}: malformed mcap record of kind {kind} ({error})") from error


def _data_records(
    file, path: Path, tell: Callable[[Path, str], None]
) -> Iterator[tuple[int, memoryview]]:
    """Records of the data section, those inside chunks included."""
    size = os.fstat(file.fileno()).st_size
    while (record := _read_record(file, size)) is not None:
        kind, body = record
        if kind in (DATA_END, FOOTER, UNWRITTEN):
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
    tell(
        path,
        f"cut off or damaged after {file.tell() / 1e6:.1f} MB of {size / 1e6:.1f} MB: only the "
        "part before is used",
    )


def _read_record(file, size: int) -> tuple[int, memoryview] | None:
    head = file.read(9)
    length = struct.unpack_from("<Q", head, 1)[0] if len(head) == 9 else size
    return (head[0], memoryview(file.read(length))) if file.tell() + length <= size else None


def _unpack_chunk(body: memoryview) -> memoryview | None:
    """The records in a chunk, or None when it is damaged."""
    try:
        _, _, size, crc = struct.unpack_from("<QQQI", body)
        compression, at = _text(body, 28)
    except (struct.error, UnicodeDecodeError):
        return None
    records = body[at + 8 :]
    if compression:
        if compression not in COMPRESSIONS:
            raise SldError(
                f"mcap chunk compression {compression!r}: expected {', '.join(COMPRESSIONS)} "
                "or none"
            )
        try:
            records = memoryview(_decompressed(bytes(records), compression, size))
        except Exception as error:  # each compression library has errors of its own
            log.warning("a chunk cannot be decompressed: %s", error)
            return None
    return records if len(records) == size and crc in (0, zlib.crc32(records)) else None


def _decompressed(data: bytes, compression: str, size: int) -> bytes:
    """At most one byte more than the chunk says it holds: kilobytes may unpack to more than the
    memory."""
    if size > MAX_CHUNK_BYTES:
        raise SldError(f"it says it holds {size} bytes; expected at most {MAX_CHUNK_BYTES}")
    from lz4.frame import LZ4FrameDecompressor  # the libraries that rosbags brings
    from rosbags.rosbag2.storage_mcap import zstd

    decompressor = LZ4FrameDecompressor() if compression == "lz4" else zstd.ZstdDecompressor()
    out = decompressor.decompress(data, max_length=size + 1)
    if len(out) != size or not decompressor.eof:
        raise SldError(
            f"it says it holds {size} bytes and holds {'more' if len(out) > size else len(out)}"
        )
    return out


def _footer(summary_start: int) -> bytes:
    return _record(FOOTER, struct.pack("<QQI", summary_start, 0, 0)) + MAGIC


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
    return bytes(body[at + 4 : end]).decode(), end


_HEAD = 9  # opcode and length of a record
_PAGE = 4096
