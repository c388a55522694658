"""A rosbag2 folder (mcap) that stays readable, however its writer ends."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from rclpy.qos import QoSProfile
from rosbags.typesys import Stores, get_typestore

from sld_core.types import SldError
from sld_ros.mcap_writer import McapWriter

FLUSH_S = 1.0  # a killed recorder loses at most this much
FLUSH_BYTES = 32 * 2**20
METADATA_VERSION = 8  # the newest that Humble's ros2 bag reads too


@dataclass
class RecordedTopic:
    """A topic of a recording, with its counts."""

    name: str
    type: str
    qos: str  # offered profiles as YAML
    written: int = 0
    dropped: int = 0
    channel: int = 0


class BagWriter:
    """Writes serialized messages on a thread of its own.

    Messages are dropped, and counted, while the queue holds `queue_bytes` and after an error:
    `error` then says why the recording ended. Raises SldError when the folder exists or the disk
    has less than `min_free_bytes` left."""

    def __init__(self, path: Path, queue_bytes: int, min_free_bytes: int):
        self.path = path
        self.error = ""
        self.topics: dict[str, RecordedTopic] = {}
        self._min_free_bytes = min_free_bytes
        self._store = get_typestore(Stores.ROS2_JAZZY)
        _make_folder(path, min_free_bytes)
        try:
            self._mcap = McapWriter(path / f"{path.name}_0.mcap")
            self._write_metadata()
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)  # made above, and empty
            raise SldError(
                f"{path}: cannot be written ({error.strerror}); is the disk full?"
            ) from None
        self._room = queue_bytes
        self._room_lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[RecordedTopic, int, bytes] | RecordedTopic | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._work, name="bag")
        self._thread.start()

    def add_topic(self, name: str, type_name: str, qos: list[QoSProfile]) -> None:
        """Announce a topic before its first message."""
        self.topics[name] = RecordedTopic(name, type_name, qos_yaml(qos))
        self._queue.put(self.topics[name])

    def write(self, topic: str, time_ns: int, data: bytes) -> None:
        """Queue one serialized message."""
        with self._room_lock:
            if self.error or len(data) > self._room:
                self.topics[topic].dropped += 1
                return
            self._room -= len(data)
        self._queue.put((self.topics[topic], time_ns, data))

    def close(self) -> None:
        """Write what is queued and end the bag."""
        self._queue.put(None)
        self._thread.join()

    @property
    def duration_s(self) -> float:
        """Between the first and the last message written."""
        start, end = self._mcap.span_ns
        return (end - start) / 1e9

    def _work(self) -> None:
        next_flush = time.monotonic() + FLUSH_S
        more = True
        while more:
            try:
                more = self._take(self._queue.get(timeout=max(0.0, next_flush - time.monotonic())))
            except queue.Empty:
                pass
            except Exception as error:  # whatever happens, the queue must be emptied
                self._fail(error)
            if not more or time.monotonic() >= next_flush or self._mcap.pending_bytes > FLUSH_BYTES:
                self._flush()
                next_flush = time.monotonic() + FLUSH_S
        self._end()

    def _end(self) -> None:
        """Close the file; then count what is in it."""
        try:
            self._mcap.close()
        except Exception as error:
            self._fail(error)
        for topic in self.topics.values():
            saved = self._mcap.saved_counts.get(topic.channel, 0)
            topic.written, topic.dropped = saved, topic.dropped + topic.written - saved
        if self.error:
            # the disk may still be full: then the last one that was written stays
            with contextlib.suppress(Exception):
                self._write_metadata()

    def _fail(self, error: Exception) -> None:
        """Remember the first error."""
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        self.error = (
            self.error or f"{self.path}: writing failed ({reason}); the recording ended here"
        )

    def _take(self, item: tuple[RecordedTopic, int, bytes] | RecordedTopic | None) -> bool:
        """Hand one item of the queue to the file; false when it was the last."""
        if isinstance(item, RecordedTopic):
            # types that are not standard are recorded without a definition: ROS plays them, other
            # readers cannot decode them
            known = item.type in self._store.fielddefs
            definition = self._store.generate_msgdef(item.type, ros_version=2)[0] if known else ""
            item.channel = self._mcap.add_channel(item.name, item.type, definition, item.qos)
        elif item is not None:
            topic, time_ns, data = item
            with self._room_lock:
                self._room += len(data)
            if self.error:
                topic.dropped += 1
            else:
                self._mcap.write(topic.channel, time_ns, data)
                topic.written += 1
        return item is not None

    def _flush(self) -> None:
        if self.error:
            return
        try:
            self._mcap.flush()
            self._write_metadata()
            free = shutil.disk_usage(self.path).free
            if free < self._min_free_bytes:
                self.error = (
                    f"the disk of {self.path} has only {free / 1e9:.1f} GB left; the "
                    "recording ended here"
                )
        except Exception as error:  # the thread must go on: `close` waits for it
            self._fail(error)

    def _write_metadata(self) -> None:
        """metadata.yaml, replaced as a whole."""
        path = self.path / "metadata.yaml"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(_yaml({"rosbag2_bagfile_information": self._metadata()}))
        os.replace(temporary, path)

    def _metadata(self) -> dict:
        """The description that rosbag2 keeps beside the data."""
        start, end = self._mcap.span_ns
        topics = [t for t in list(self.topics.values()) if t.channel]  # another thread adds to them
        span = {
            "duration": {"nanoseconds": end - start},
            "starting_time": {"nanoseconds_since_epoch": start},
            "message_count": sum(t.written for t in topics),
        }
        file = f"{self.path.name}_0.mcap"
        return {
            "version": METADATA_VERSION,
            "storage_identifier": "mcap",
            **span,
            "topics_with_message_count": [
                {"topic_metadata": self._topic_metadata(t), "message_count": t.written}
                for t in topics
            ],
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [file],
            "files": [{"path": file, **span}],
            "custom_data": None,
            "ros_distro": "sld",
        }

    def _topic_metadata(self, topic: RecordedTopic) -> dict:
        known = topic.type in self._store.fielddefs
        return {
            "name": topic.name,
            "type": topic.type,
            "serialization_format": "cdr",
            "offered_qos_profiles": topic.qos,
            "type_description_hash": self._store.hash_rihs01(topic.type) if known else "",
        }


def qos_yaml(profiles: list[QoSProfile]) -> str:
    """Offered profiles as rosbag2 stores them; `ros2 bag play` offers the same again."""
    forever = {"sec": 9223372036, "nsec": 854775807}
    entries = [
        {
            "history": profile.history.value,
            "depth": profile.depth,
            "reliability": profile.reliability.value,
            "durability": profile.durability.value,
            "deadline": forever,
            "lifespan": forever,
            "liveliness": profile.liveliness.value,
            "liveliness_lease_duration": forever,
            "avoid_ros_namespace_conventions": profile.avoid_ros_namespace_conventions,
        }
        for profile in profiles
    ]
    return _yaml(entries) if entries else ""


class _PlainDumper(yaml.SafeDumper):
    """Writes what occurs twice in full, as rosbag2 does; PyYAML would use an anchor."""

    def ignore_aliases(self, data) -> bool:
        return True


def _yaml(data) -> str:
    return yaml.dump(data, Dumper=_PlainDumper, sort_keys=False).strip()


def _make_folder(path: Path, min_free_bytes: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < min_free_bytes:
            raise SldError(
                f"the disk of {path.parent} has {free / 1e9:.1f} GB left, less than "
                f"min_free_disk = {min_free_bytes / 1e9:.1f} GB"
            )
        path.mkdir()
    except FileExistsError:
        raise SldError(f"{path} exists already; choose another name") from None
    except OSError as error:
        raise SldError(f"{path}: cannot be created ({error.strerror})") from None
