"""The demo: record a drive, teach the scene and localize in it, through the real nodes, over
DDS."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from sld.action import TrainScene

from sld_core import scene_file, synthetic
from sld_core.camera.images import read_image
from sld_core.data.frame_folder import read_frames
from sld_core.evaluation.metrics import Metrics, QueryResult, accuracy, format_table, summarize
from sld_core.evaluation.report import overlay, write_report
from sld_core.localizer import Localizer
from sld_core.progress import Bar
from sld_core.spread import spread
from sld_core.types import Frame, Progress, SldError
from sld_ros.demo.client import Answer, Client
from sld_ros.demo.player import Player, base_poses, drifting_odometry
from sld_ros.demo.processes import NodeProcesses, clean_shared_memory

MAP_FRAMES, QUERY_FRAMES = 150, 60
BAG = SCENE = "demo"
TEACH_S = 1200.0
QUERY_S = 20.0
OVERLAYS = 3


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    os.environ["ROS_DOMAIN_ID"] = str(options.domain)
    clean_shared_memory()
    run_demo(options.output.absolute(), options.sequence, options.rate, options.seed, options.head)


def run_demo(output: Path, sequence: Path | None, rate: float, seed: int, head: str) -> Metrics:
    """Leaves report.html, metrics.json, the scene file, the bag and the logs of the nodes in
    `output`."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SldError(f"--output {output}: cannot be made a folder ({error.strerror})") from None
    sequence = sequence or _rendered_room(output / f"room-{seed}", seed)
    mapping, queries = (read_frames(sequence, sequence / name) for name in ("map.txt", "query.txt"))
    print(f"sequence {sequence}: {len(mapping)} frames to map, {len(queries)} to query")
    _make_way(output / "recordings")
    with NodeProcesses(output / "logs") as processes:
        processes.start(
            "recorder", "sld_ros.recorder_node", {"output_folder": output / "recordings"}
        )
        processes.start("trainer", "sld_ros.trainer_node", {"output_folder": output / "scenes"})
        processes.start("localizer", "sld_ros.localizer_node")
        with _spinning(processes) as (player, client):
            bag = _record(player, client, processes, mapping, rate)
            scene_path, teach_s = _teach(client, bag, seed, head)
            client.load_scene(str(scene_path))
            answers = _localize(player, client, queries, np.random.default_rng(seed))
    return _evaluate(output, sequence.name, scene_path, teach_s, mapping, queries, answers)


def _make_way(recordings: Path) -> None:
    """Remove the bag of the last demo, since the recorder overwrites nothing; but only where a demo
    made the folder."""
    made_here = recordings / ".made-by-demo"
    if (recordings / BAG).exists() and not made_here.exists():
        raise SldError(
            f"{recordings / BAG} is a recording that no demo made; choose another --output"
        )
    shutil.rmtree(recordings / BAG, ignore_errors=True)
    recordings.mkdir(exist_ok=True)
    made_here.touch()


def _rendered_room(folder: Path, seed: int) -> Path:
    """A rendered room as a sequence on disk; query.txt is written last and marks it as complete."""
    if not (folder / "query.txt").exists():
        bar = Bar()
        synthetic.write_sequence(
            folder,
            synthetic.Room.make(seed),
            synthetic.DEMO_CAMERA,
            synthetic.drive(seed, MAP_FRAMES),
            synthetic.drive(seed, QUERY_FRAMES, "query"),
            seed,
            lambda fraction: bar(Progress("rendering a room", fraction)),
        )
        bar.done()
    return folder


def _record(
    player: Player, client: Client, processes: NodeProcesses, frames: Sequence[Frame], rate: float
) -> str:
    """Play the mapping drive. Its odometry is the poses of the frames, so the scene's map frame is
    the world of the frames."""
    bag = client.start_recording(BAG)
    processes.wait_until(
        lambda: player.images.get_subscription_count() >= 2,
        30,
        "waiting for recorder and localizer to hear the images",
    )
    bar = Bar()
    for i, (frame, T_odom_base) in enumerate(zip(frames, base_poses(frames))):
        due = time.monotonic() + 1 / rate
        player.play(frame, T_odom_base)
        bar(Progress("recording the mapping drive", (i + 1) / len(frames)))
        processes.check()
        time.sleep(max(0, due - time.monotonic()))
    bar.done()
    time.sleep(0.5)  # the last messages are still on their way
    recorded = client.stop_recording()
    images = next((t.count for t in recorded.topics if t.topic == "/image"), 0)
    print(f"recorded {images} of {len(frames)} images, {recorded.duration:.1f} s, in {bag}")
    if images < 0.9 * len(frames):
        raise SldError(f"only {images} of {len(frames)} images were recorded: play slower (--rate)")
    return bag


def _teach(client: Client, bag: str, seed: int, head: str) -> tuple[Path, float]:
    """The scene file, and the seconds from the request to the file."""
    bar = Bar()

    def on_feedback(feedback: TrainScene.Feedback) -> None:
        loss = feedback.loss if math.isfinite(feedback.loss) else None
        left_s = feedback.seconds_left if math.isfinite(feedback.seconds_left) else None
        bar(Progress(f"teaching, {feedback.stage}", feedback.fraction, loss, left_s))

    start = time.monotonic()
    taught = client.teach(
        TrainScene.Goal(source=bag, scene=SCENE, seed=seed, head=head), on_feedback, TEACH_S
    )
    seconds = time.monotonic() - start
    bar.done()
    print(
        f"taught in {seconds:.1f} s: {taught.landmarks} landmarks from {taught.frames} frames, "
        f"in {taught.path}"
    )
    return Path(taught.path), seconds


def _localize(
    player: Player, client: Client, frames: Sequence[Frame], rng: np.random.Generator
) -> list[Answer]:
    """Play the query drive with an odometry that starts elsewhere and drifts. One image at a time,
    so that none is replaced by a newer one on a slow machine."""
    if client.knows_map():
        raise SldError("map -> odom is on TF before any fix")
    answers = []
    bar = Bar()
    for frame, T_odom_base in zip(frames, drifting_odometry(base_poses(frames), rng)):
        answers.append(client.answer_for(player.play(frame, T_odom_base), QUERY_S))
        bar(Progress("localizing the query drive", len(answers) / len(frames)))
    bar.done()
    return answers


def _evaluate(
    output: Path,
    title: str,
    scene_path: Path,
    teach_s: float,
    mapping: Sequence[Frame],
    queries: Sequence[Frame],
    answers: Sequence[Answer],
) -> Metrics:
    scene = scene_file.load(scene_path)
    by_pose = [_result(frame, answer, answer.T_pose) for frame, answer in zip(queries, answers)]
    by_tf = [_result(frame, answer, answer.T_tf) for frame, answer in zip(queries, answers)]
    metrics = summarize(by_pose, scene.report, scene_path.stat().st_size) | {"teach_s": teach_s}
    metrics |= {f"tf_{key}": value for key, value in accuracy(by_tf).items()}
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    report = output / "report.html"
    write_report(
        report,
        f"sld demo: {title}",
        metrics,
        by_pose,
        scene=scene.report,
        map_poses=[f.T_world_camera for f in mapping],
        landmarks_L3=scene.landmarks.xyz_L3,
        overlays=_overlays(Localizer(scene), queries),
    )
    print(f"\n{format_table(metrics)}\n\nreport: {report}\nmetrics: {output / 'metrics.json'}")
    return metrics


def _result(frame: Frame, answer: Answer, T_estimated: np.ndarray | None) -> QueryResult:
    reason = answer.status.reason or answer.status.tf_error
    return QueryResult(
        frame.name, frame.T_world_camera, T_estimated, reason, answer.status.processing_time
    )


def _overlays(localizer: Localizer, queries: Sequence[Frame]) -> list[tuple[str, np.ndarray]]:
    """Some queries with what the localizer found in them; the nodes publish poses, not
    detections."""
    chosen = spread(queries, OVERLAYS)
    pictures = []
    for frame in chosen:
        image = read_image(frame.image_path)
        found = localizer.localize(image, frame.camera)
        used = int(np.count_nonzero(found.pose.inlier_K)) if found.pose else 0
        caption = (
            f"Query {frame.name}: {len(found.detections)} landmarks found, {used} of "
            "them carry the pose."
        )
        pictures.append(
            (caption, overlay(image, frame.camera, found, localizer.scene.landmarks.xyz_L3))
        )
    return pictures


@contextmanager
def _spinning(processes: NodeProcesses) -> Iterator[tuple[Player, Client]]:
    """The demo's own two nodes, on an executor in a thread."""
    # ctrl-C is ours: the nodes end first
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    player, client = Player(), Client(processes)
    executor = SingleThreadedExecutor()
    for node in (player, client):
        executor.add_node(node)
    thread = threading.Thread(target=executor.spin, name="spin")
    thread.start()
    try:
        yield player, client
    finally:
        executor.shutdown()
        thread.join()
        for node in (player, client):
            node.destroy_node()
        rclpy.try_shutdown()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument(
        "--sequence",
        type=Path,
        help="a real sequence (camera-intrinsics.txt, map.txt, query.txt, frames); default: a "
        "rendered room",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/demo"),
        help="folder for report, metrics, scene, bag and logs (%(default)s)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=10.0,
        help="images a second in the mapping drive (%(default)s)",
    )
    parser.add_argument(
        "--head",
        choices=("cells", "prototype", "heatmap"),
        default="cells",
        help="prototype: no training; heatmap: the paper's, some minutes (%(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the rendered room, the training and the drift of odometry (%(default)s)",
    )
    parser.add_argument(
        "--domain",
        type=int,
        default=1 + os.getpid() % 100,
        help="ROS_DOMAIN_ID, so that other robots do not interfere (default: by process id)",
    )
    options = parser.parse_args(remove_ros_args(sys.argv)[1:] if arguments is None else arguments)
    if options.rate <= 0:
        parser.error(f"--rate {options.rate}: expected more than 0")
    return options
