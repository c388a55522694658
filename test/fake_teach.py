"""Stands in for `python -m sld_core.cli` in tests of the trainer; the name of the scene says how it
behaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def option(name):
    return next(word.partition("=")[2] for word in sys.argv if word.startswith(f"{name}="))


def event(**values):
    print(json.dumps(values), flush=True)


def main():
    name, output = option("--name"), Path(option("--output"))
    print("a line of the log", file=sys.stderr, flush=True)
    (Path(option("--work")) / "frames").mkdir()
    event(event="progress", stage="reading the bag", fraction=0.5, loss=None, seconds_left=None)
    event(event="progress", stage="training", fraction=0.25, loss=1.5, seconds_left=12.0)
    if name == "stubborn":  # ignores the polite signals, and has a child
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (output.parent / "pids").write_text(f"{child.pid}")
        time.sleep(60)
    if name == "slow":
        time.sleep(60)
    if name == "refused":
        event(event="error", kind="bad_input", text="no images in the bag")
        sys.exit(1)
    if name == "unusual":  # an event that is not as agreed
        event(stage="?")
        time.sleep(60)
    if name == "abort":  # as COLMAP does
        print("F1129 Check failed: n > 0\n*** Check failure stack trace: ***", file=sys.stderr)
        print("    @     0x7f01  abort", file=sys.stderr, flush=True)
        os.abort()
    if name == "crash":
        raise RuntimeError("a defect")
    output.write_text("damaged" if name == "damaged" else " ".join(sys.argv[1:]))
    event(
        event="done",
        scene=str(output),
        frames=120,
        landmarks=1000,
        teach_s=42.5,
        validation={"frames": 20, "recall_5cm_5deg": 0.95, "median_m": 0.01, "median_rad": 0.005},
    )


main()
