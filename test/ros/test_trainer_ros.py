"""The trainer's action over DDS, with a fake program to teach."""

import math
import os
import signal
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.ros

FAKE = str(Path(__file__).parents[1] / "fake_trainer.py")


@pytest.fixture
def trainer(ros, tmp_path):
    """A trainer process that writes into tmp_path/scenes, and a client for it."""
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "metadata.yaml").touch()
    return Client(ros, ros.process(FAKE, output_folder=tmp_path / "scenes"), tmp_path)


class Client:
    def __init__(self, ros, process, folder):
        from rclpy.action import ActionClient
        from sld.action import TrainScene

        self.ros, self.process, self.folder, self.feedback = ros, process, folder, []
        self.action = ActionClient(ros.node("client"), TrainScene, "/trainer/train_scene")
        assert self.action.wait_for_server(20)

    def send(self, scene, source="bag", **options):
        """The handle of an accepted goal."""
        from sld.action import TrainScene

        goal = TrainScene.Goal(
            source=str(self.folder / source), scene=scene, seed=options.pop("seed", -1), **options
        )
        sent = self.action.send_goal_async(
            goal, feedback_callback=lambda m: self.feedback.append(m.feedback)
        )
        self.ros.wait_for(sent.done, "answer to the goal")
        assert sent.result().accepted
        return sent.result()

    def result(self, handle, timeout_s=10.0):
        future = handle.get_result_async()
        self.ros.wait_for(future.done, "result", timeout_s)
        return future.result().result

    def files(self):
        return sorted(p.name for p in (self.folder / "scenes").glob("*") if p.name != "pids")


def is_alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_teaches_with_feedback_and_hands_on_the_options(trainer):
    result = trainer.result(trainer.send("room", head="prototype", landmarks=500, seed=7))
    assert result.error == result.SUCCESS and result.path == str(
        trainer.folder / "scenes" / "room.sld"
    )
    assert (result.frames, result.landmarks, result.validation_frames) == (120, 1000, 20)
    assert result.teach_time == 42.5 and result.validation_recall_5cm_5deg == pytest.approx(0.95)
    assert [f.stage for f in trainer.feedback] == ["reading the bag", "training"]
    assert math.isnan(trainer.feedback[0].loss) and trainer.feedback[1].seconds_left == 12
    words = Path(result.path).read_text().split()
    assert words[:2] == ["teach", f"--bag={trainer.folder / 'bag'}"] and words[-1] == "--events"
    assert words[3].startswith("--work=") and not Path(words[3].removeprefix("--work=")).exists()
    assert " ".join(words[4:]) == "--name=room --head=prototype --landmarks=500 --seed=7 --events"
    assert trainer.files() == ["room.sld"]


@pytest.mark.parametrize(
    "file, option",
    [
        ("camera-intrinsics.txt", "--frames"),
        ("sld-map.json", "--scene-data"),
        ("scene.json", "--scene-data"),
        ("train_test_val.pkl", "--scene-data"),
        ("drive_0.db3", "--bag"),
    ],
)
def test_the_kind_of_source_is_recognised(tmp_path, file, option):
    from sld_ros.teach_process import source_option

    (tmp_path / file).touch()
    assert source_option(tmp_path) == option


def test_a_recording_may_be_named_by_its_file(tmp_path):
    from sld_ros.teach_process import source_option

    (tmp_path / "drive_0.mcap").touch()
    assert source_option(tmp_path / "drive_0.mcap") == "--bag"


def test_a_map_is_taught_and_defaults_are_left_to_the_core(trainer):
    (trainer.folder / "lobby").mkdir()
    (trainer.folder / "lobby" / "sld-map.json").write_text("{}")
    words = Path(trainer.result(trainer.send("room", source="lobby")).path).read_text()
    assert f"teach --scene-data={trainer.folder / 'lobby'} --output=" in words
    assert words.endswith("--name=room --events")


def test_what_fails_says_why_and_the_old_scene_stays(trainer):
    (trainer.folder / "scenes").mkdir()
    for scene, error, words in [
        ("refused", "BAD_INPUT", "no images in the bag"),
        ("crash", "FAILED", "status 1: a line of the log | RuntimeError: a defect"),
        ("abort", "FAILED", "signal SIGABRT: a line of the log | F1129 Check failed: n > 0"),
        ("damaged", "FAILED", "not usable: the scene file is damaged"),
        ("unusual", "FAILED", "KeyError"),
        ("-room", "BAD_INPUT", "not in front"),
        ("r" * 101, "BAD_INPUT", "100 at most"),
        ("../room", "BAD_INPUT", "expected letters"),
        ("", "BAD_INPUT", "expected letters"),
    ]:
        old = trainer.folder / "scenes" / f"{Path(scene).name}.sld"
        old.write_text("old")
        result = trainer.result(trainer.send(scene))
        assert result.error == getattr(result, error) and words in result.text, scene
        assert old.read_text() == "old" and not any("partial" in name for name in trainer.files())
    (trainer.folder / "photos").mkdir()
    (trainer.folder / "photos" / "a.jpg").touch()
    for source, came in (("none", "no such file or folder"), ("photos", "a folder with a.jpg")):
        result = trainer.result(trainer.send("room", source=source))
        assert result.error == result.BAD_INPUT
        assert f"{came}; expected a rosbag2 recording" in result.text


def test_an_option_that_sld_does_not_know_is_bad_input(ros, tmp_path):
    """With the real program, which ends before it has heard of events."""
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "metadata.yaml").touch()
    process = ros.process("sld_ros.trainer_node", output_folder=tmp_path / "scenes")
    trainer = Client(ros, process, tmp_path)
    result = trainer.result(trainer.send("room", head="nonsense"), 60)
    assert result.error == result.BAD_INPUT, result.text
    assert "argument --head: invalid choice: 'nonsense'" in result.text


def test_an_output_folder_that_cannot_be_written_is_bad_input(trainer):
    (trainer.folder / "scenes").touch()  # a file, which stops root too
    result = trainer.result(trainer.send("room"))
    assert result.error == result.BAD_INPUT and "output_folder" in result.text


@pytest.mark.parametrize("scene", ["slow", "stubborn"])
def test_cancel_works_within_two_seconds_and_leaves_no_process(trainer, scene):
    handle = trainer.send(scene)
    trainer.ros.wait_for(lambda: len(trainer.feedback) == 2, "feedback")
    pids = trainer.folder / "scenes" / "pids"
    if scene == "stubborn":
        trainer.ros.wait_for(pids.exists, "child process")
    start = time.monotonic()
    canceling = handle.cancel_goal_async()
    result = trainer.result(handle)
    print(f"canceled after {time.monotonic() - start:.2f} s")
    assert time.monotonic() - start < 2 and result.error == result.CANCELED and canceling.done()
    assert trainer.files() == []
    assert scene == "slow" or not is_alive(int(pids.read_text()))


def test_a_second_goal_is_told_that_the_trainer_is_busy(trainer):
    first = trainer.send("slow")
    trainer.ros.wait_for(lambda: trainer.feedback, "sign that the first one is being taught")
    second = trainer.result(trainer.send("room"))
    assert second.error == second.BUSY and "another scene" in second.text
    first.cancel_goal_async()
    assert trainer.result(first).error == second.CANCELED
    assert trainer.result(trainer.send("room")).error == second.SUCCESS


def test_the_process_ends_with_the_node(trainer):
    trainer.send("stubborn")
    pids = trainer.folder / "scenes" / "pids"
    trainer.ros.wait_for(pids.exists, "child process")
    os.kill(trainer.process.pid, signal.SIGINT)
    trainer.process.wait(10)
    assert not is_alive(int(pids.read_text()))


def test_a_cancel_finds_a_thread_on_a_single_core(ros, monkeypatch):
    from sld_ros import trainer_node

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr("multiprocessing.cpu_count", lambda: 1)
    node, executor = trainer_node.start()
    ros.node(node)
    assert executor._executor._max_workers >= 2
    executor.shutdown()


def test_the_last_words_of_a_log_are_its_messages():
    from sld_ros.teach_process import last_words

    log = [
        "WARNING sld_core.data: 3 frames left out",
        "Traceback (most recent call last):",
        '  File "solve.py", line 3, in solve',
        "    run(",
        "    ^^^^",
        "terminate called after throwing an instance of 'std::runtime_error'",
        "  what():  No registered database factory succeeded.",
        "*** Aborted at 1700000000 ***",
        "    @     0x7f01 abort",
        "/lib/x86_64-linux-gnu/libc.so.6(+0x3bfd0) [0x7f0]",
        "",
    ]
    assert last_words(log) == (
        "WARNING sld_core.data: 3 frames left out | terminate called after throwing an instance "
        "of 'std::runtime_error' | what():  No registered database factory succeeded."
    )
