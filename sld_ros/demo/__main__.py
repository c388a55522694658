"""`python -m sld_ros.demo` and `ros2 run sld demo`: the demo as a process, which ends its nodes
when it is interrupted."""

from __future__ import annotations

import sys
import time

from sld_core import runtime

GRACE_S = 10.0  # NodeProcesses.stop takes 8 s at most


def main() -> None:
    def interrupt(_number: int) -> None:
        raise KeyboardInterrupt

    def end(number: int) -> None:
        time.sleep(GRACE_S)
        runtime.leave(128 + number)

    runtime.prepare()
    try:
        runtime.on_stop(end, interrupt)
        # imported here, once signals are taken care of
        from sld_core.types import SldError
        from sld_ros.demo import demo

        try:
            demo.main()
        except SldError as error:
            sys.exit(f"\nerror: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
