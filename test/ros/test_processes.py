import time
from pathlib import Path

import pytest

from sld_core.types import SldError
from sld_ros.demo.processes import NodeProcesses


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Writes a module that can stand in for a node."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


def running(pid: int) -> bool:
    """Alive, and not a zombie that its parent has yet to collect."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def read_when_written(path, processes) -> str:
    processes.wait_until(lambda: path.exists() and path.read_text(), 20, "the file")
    return path.read_text()


def test_parameters_reach_the_node_and_its_output_the_log(tmp_path, modules):
    modules("node_a", "import sys, time; print(sys.argv[1:], flush=True); time.sleep(60)")
    with NodeProcesses(tmp_path / "logs") as processes:
        processes.start("a", "node_a", {"rate": 2.5, "folder": "there"})
        assert (
            read_when_written(tmp_path / "logs" / "a.log", processes).strip()
            == "['--ros-args', '-p', 'rate:=2.5', '-p', 'folder:=there']"
        )


def test_a_node_that_dies_is_reported_with_its_last_lines(tmp_path, modules):
    modules("node_b", "raise RuntimeError('the camera is on fire')")
    with NodeProcesses(tmp_path / "logs") as processes:
        processes.start("b", "node_b")
        with pytest.raises(SldError, match="(?s)node b ended with status 1.*the camera is on fire"):
            processes.wait_until(lambda: False, 20, "waiting for nothing")


def test_what_does_not_happen_in_time_is_named(tmp_path):
    expected = pytest.raises(SldError, match="waiting for rain: not within 0 s")
    with NodeProcesses(tmp_path / "logs") as processes, expected:
        processes.wait_until(lambda: False, 0.05, "waiting for rain")


def test_an_error_ends_every_node_even_one_that_ignores_interrupts_and_its_children(
    tmp_path, modules, monkeypatch
):
    monkeypatch.setattr("sld_ros.demo.processes.INTERRUPT_S", 0.3)
    monkeypatch.setattr("sld_ros.demo.processes.TERMINATE_S", 0.3)
    modules(
        "stubborn",
        "import os, signal, sys, time\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
        f"child = os.fork()\nif child: open(r'{tmp_path}/pids', 'w').write(f'{{os.getpid()}} "
        f"{{child}}')\ntime.sleep(60)",
    )
    with pytest.raises(KeyboardInterrupt), NodeProcesses(tmp_path / "logs") as processes:
        processes.start("stubborn", "stubborn")
        pids = [int(pid) for pid in read_when_written(tmp_path / "pids", processes).split()]
        assert all(running(pid) for pid in pids)
        raise KeyboardInterrupt
    time.sleep(0.2)
    assert not any(running(pid) for pid in pids)
