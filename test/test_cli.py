"""The `sld` process: what it prepares before torch is loaded, and how signals end it."""

import signal
import sys
import time
from pathlib import Path

import pytest
from stopping import end_of, start, wait_until_ready

from sld_core import cli, runtime
from sld_core.types import SldError

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def sld(body, *arguments):
    """The command line as a process, which does `body` instead of a command."""
    lines = "\n    ".join(body.strip().splitlines())
    code = (
        "import sys, time\nfrom sld_core import cli, runtime\nparser = cli._parser\n"
        f"def run(argv):\n    {lines}\ncli._run = run\nsys.exit(cli.main())"
    )
    return start("-c", code, *arguments)


PYCOLMAP = "from sld_core.optional import pycolmap\npycolmap.Camera()"


def wait_for_line(process, text="ready"):
    assert process.stdout.readline().strip() == text


@pytest.mark.parametrize("number", [INT, TERM, HUP])
def test_a_signal_ends_a_command_with_one_line(number):
    process = sld("print('ready', flush=True)\ntime.sleep(60)", "--events")
    wait_for_line(process)
    process.send_signal(number)
    assert end_of(process) == (
        128 + number,
        '{"event": "error", "kind": "canceled", "text": "interrupted"}\n',
        "sld: interrupted\n",
    )


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.2, 0.4, 0.6, 0.9])
def test_a_signal_during_imports_ends_it_with_one_line(delay_s):
    process = sld(f"parser()\nimport torch\n{PYCOLMAP}\ntime.sleep(60)")
    wait_until_ready(process)
    time.sleep(delay_s)
    process.send_signal(TERM)
    assert end_of(process) == (143, "", "sld: interrupted\n")


def test_sigterm_ends_a_process_that_has_imported_pycolmap():
    """The handler that pycolmap installs prints a stack trace, and can hang."""
    pytest.importorskip("pycolmap")
    process = sld(f"{PYCOLMAP}\nprint('ready', flush=True)\ntime.sleep(60)")
    wait_for_line(process)
    process.send_signal(TERM)
    assert end_of(process) == (143, "", "sld: interrupted\n")


@pytest.mark.parametrize("number", [INT, TERM])
def test_a_computation_that_does_not_return_is_left_and_its_folder_removed(number):
    """The main thread sleeps in C and hears no signal, as in the middle of a bundle adjustment."""
    process = sld(
        "import ctypes, signal\n"
        "with runtime.temporary_folder() as folder:\n"
        "    print(folder, flush=True)\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, runtime.STOP_SIGNALS)\n"
        "    ctypes.CDLL(None).sleep(60)"
    )
    folder = Path(process.stdout.readline().strip())
    assert folder.is_dir()
    process.send_signal(number)
    assert end_of(process) == (128 + number, "", "sld: interrupted\n")
    assert not folder.exists()


def test_a_second_signal_does_not_interrupt_the_cleaning_up():
    process = sld(
        "try:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "finally:\n    print('cleaning', flush=True)\n    time.sleep(0.3)\n"
        "    print('cleaned', flush=True)"
    )
    wait_for_line(process)
    process.send_signal(INT)
    wait_for_line(process, "cleaning")
    process.send_signal(INT)
    process.send_signal(TERM)
    assert end_of(process) == (130, "cleaned\n", "sld: interrupted\n")


def test_an_interrupt_that_a_library_turns_into_another_error_is_still_one():
    process = sld(
        "try:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    raise RuntimeError('no callback') from None"
    )
    wait_for_line(process)
    process.send_signal(INT)
    assert end_of(process) == (130, "", "sld: interrupted\n")


def test_the_end_of_a_forked_worker_does_not_end_the_process():
    process = sld(
        "import os, signal\nreader, writer = os.pipe()\npid = os.fork()\nif pid == 0:\n"
        "    os.write(writer, b'1')\n    time.sleep(60)\n    os._exit(0)\nos.read(reader, 1)\n"
        "os.kill(pid, signal.SIGTERM)\nassert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 15\n"
        f"time.sleep({runtime.GRACE_S + 0.3})\nprint('done')"
    )
    assert end_of(process) == (0, "done\n", "")


def test_openmp_is_told_how_to_wait_before_it_is_loaded():
    """libgomp reads OMP_WAIT_POLICY when it is loaded, with torch or another library."""
    code = (
        "import os, sys\nfrom sld_core import cli, runtime\nprepare = runtime.prepare\n"
        "def spy():\n"
        "    assert not {'torch', 'numpy', 'cv2', 'sklearn', 'pycolmap'} & set(sys.modules)\n"
        "    assert 'gomp' not in open('/proc/self/maps').read()\n"
        "    os.environ.pop('OMP_WAIT_POLICY', None)\n"
        "    prepare()\n    print('prepared', os.environ['OMP_WAIT_POLICY'], flush=True)\n"
        "runtime.prepare = spy\nsys.argv[1:] = ['info', '/none.sld']\nsys.exit(cli.main())"
    )
    status, out, error = end_of(start("-c", code), 60)
    assert (status, out) == (2, "prepared PASSIVE\n"), error


@pytest.mark.parametrize(
    "error, status, line",
    [
        (SldError("no\nsuch scene"), 2, "sld: no such scene\n"),
        (BrokenPipeError(), 141, ""),
        (KeyboardInterrupt(), 130, "sld: interrupted\n"),
        (ZeroDivisionError("by 0"), 1, "sld: ZeroDivisionError: by 0\n"),
    ],
)
def test_exit_statuses(error, status, line, monkeypatch, capsys):
    def run(argv):
        raise error

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["info"]) == status
    assert capsys.readouterr().err.endswith(line)


def test_in_another_program_signals_stay_as_they_are():
    before = [signal.getsignal(number) for number in runtime.STOP_SIGNALS]
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert [signal.getsignal(number) for number in runtime.STOP_SIGNALS] == before
    assert sys.argv[1:] != ["--help"]


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [2.0, 4.0, 6.0, 9.0, 13.0, 18.0])
def test_sigterm_ends_a_map_at_any_stage(tmp_path, delay_s):
    from small_room import sway, write_photos

    photos = write_photos(tmp_path / "photos", sway(24))
    process = start(
        "-m", "sld_core.cli", "map", "all", "--images", photos, "--output", tmp_path / "m"
    )
    wait_until_ready(process)
    time.sleep(delay_s)
    assert process.poll() is None, process.communicate()
    process.send_signal(TERM)
    status, _, error = end_of(process)
    assert status == 143 and "Traceback" not in error and "***" not in error
    assert error.splitlines()[-1] == "sld: interrupted"
