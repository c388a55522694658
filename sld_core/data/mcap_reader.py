"""Reading mcap files (https://mcap.dev/spec), also those that were cut off or damaged: their index
is not needed, and what stands before the damage is used."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import lz4.frame
import zstandard
from mcap import records as mcap
from mcap.exceptions import EndOfFile
from mcap.stream_reader import MAGIC_SIZE, StreamReader, breakup_chunk

from sld_core.types import SldError

log = logging.getLogger(__name__)

MAGIC = b"\x89MCAP0\r\n"
MAX_RECORD_BYTES = 2**30  # packed or unpacked; the chunks of recorders have a few megabytes
COMPRESSIONS = "", "lz4", "zstd"


class Message(NamedTuple):
    topic: str
    type: str
    time_ns: int  # when it was recorded
    data: bytes  # CDR


def warn(path: Path, what: str) -> None:
    """Log what is wrong with a file."""
    log.warning("%s is %s", path, what)


def scan(path: Path, on_damage: Callable[[Path, str], None] = warn) -> Iterator[Message]:
    """Messages in the order of the file. When it ends early, `on_damage` is called with the path
    and what is wrong."""
    if not path.is_file():  # opening a pipe would wait for its writer
        found = "no file" if path.exists() else "no such file"
        raise SldError(f"{path}: {found}; expected an mcap file")
    with open(path, "rb") as file:
        if file.read(MAGIC_SIZE) != MAGIC:
            raise SldError(f"{path}: not an mcap file")
        try:
            yield from _messages(_records(file))
        except SldError as error:
            raise SldError(f"{path}: {error}") from None
        except Exception as error:  # each library has errors of its own for damaged bytes
            size = os.fstat(file.fileno()).st_size
            on_damage(
                path,
                f"cut off or damaged after {file.tell() / 1e6:.1f} MB of {size / 1e6:.1f} MB "
                f"({str(error) or type(error).__name__}): only the part before is used",
            )


def _messages(records: Iterator[mcap.McapRecord]) -> Iterator[Message]:
    types: dict[int, str] = {}
    channels: dict[int, tuple[str, str]] = {}  # topic and type
    for record in records:
        if isinstance(record, mcap.Schema):
            types[record.id] = record.name
        elif isinstance(record, mcap.Channel):
            channels[record.id] = record.topic, types.get(record.schema_id, "")
        elif isinstance(record, mcap.Message) and record.channel_id in channels:
            yield Message(*channels[record.channel_id], record.log_time, record.data)


def _records(file: BinaryIO) -> Iterator[mcap.McapRecord]:
    """Records of the data section, those inside chunks included."""
    reader = StreamReader(
        _ExactFile(file), skip_magic=True, emit_chunks=True, record_size_limit=MAX_RECORD_BYTES
    )
    for record in reader.records:
        if isinstance(record, (mcap.DataEnd, mcap.Footer)):
            return
        if isinstance(record, mcap.Chunk):
            yield from breakup_chunk(_unpacked(record), validate_crc=True)
        else:
            yield record


class _ExactFile:
    """A file for StreamReader, which believes every length that it reads: this one takes no memory
    for bytes that the file does not have, and returns what it is asked for or raises EndOfFile."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._left = os.fstat(file.fileno()).st_size - file.tell()
        self._last = b""

    def read(self, size: int) -> bytes:
        if size > min(self._left, MAX_RECORD_BYTES):
            raise EndOfFile(f"{size} bytes expected, {self._left} left")
        self._left -= size
        data = self._file.read(size)
        if self._last == b"\0" and data == bytes(8):
            # opcode 0 and length 0: gigabytes of zeros would be read as empty records
            raise EndOfFile("the space behind was never written")
        self._last = data
        return data


def _unpacked(chunk: mcap.Chunk) -> mcap.Chunk:
    """The chunk without compression. At most one byte more than it says it holds is unpacked:
    kilobytes may unpack to more than the memory."""
    size = chunk.uncompressed_size
    if chunk.compression not in COMPRESSIONS:
        expected = ", ".join(COMPRESSIONS[1:])
        raise SldError(f"chunk compression {chunk.compression!r}: expected {expected} or none")
    if size > MAX_RECORD_BYTES:
        raise EndOfFile(f"a chunk says it holds {size} bytes; expected at most {MAX_RECORD_BYTES}")
    data = chunk.data
    if chunk.compression == "lz4":
        data = lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=size + 1)
    elif chunk.compression == "zstd":
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read(size + 1)
    if len(data) != size:
        found = "more" if len(data) > size else len(data)
        raise EndOfFile(f"a chunk says it holds {size} bytes and holds {found}")
    return replace(chunk, compression="", data=data)
