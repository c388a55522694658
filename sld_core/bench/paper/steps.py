"""Long measurements as steps: each keeps its numbers in its own folder, so that a second call
continues where the first ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sld_core import stages
from sld_core.types import SldError

log = logging.getLogger(__name__)

Results = dict[str, stages.Done]  # of steps, by name


@dataclass(frozen=True)
class Step:
    """One measurement. `make(partial folder, results of the steps it needs)` returns numbers that
    JSON can hold; `settings` are all that they depend on; `about_s` is how long it takes on the
    slowest machine that the preset is meant for."""

    name: str
    about_s: float
    make: Callable[[Path, Results], dict[str, Any]]
    settings: Any = None
    needs: tuple[str, ...] = ()  # names of earlier steps


def run(
    steps: Sequence[Step], folder: Path, limit_s: float, clock: Callable[[], float] = time.monotonic
) -> tuple[Results, dict[str, str]]:
    """Run every step in order, unless it is done already, cannot be done, or would end after
    `limit_s`; returns the results, and the reason for each step left out. The numbers of a step are
    in FOLDER/NAME/stage.json."""
    start, done, missing = clock(), {}, {}
    for step in steps:
        lacking = [name for name in step.needs if name not in done]
        if lacking:
            missing[step.name] = f"needs {', '.join(lacking)}"
            continue
        needed = {name: done[name] for name in step.needs}
        where = folder / step.name.replace(", ", "-").replace(" ", "-")
        key = stages.key_of(step.name, step.settings, [result.made for result in needed.values()])
        known, left_s = stages.read_record(where), limit_s - (clock() - start)
        if (known is None or known.key != key) and step.about_s > left_s:
            missing[step.name] = (
                f"takes about {step.about_s:.0f} s, {max(left_s, 0):.0f} s were left; call again "
                "to continue"
            )
            continue
        log.info("%s: about %.0f s", step.name, step.about_s)
        try:
            done[step.name] = stages.run(where, key, _bound(step, needed))
        # a method that fails, such as for lack of memory, must not stop the others
        except (SldError, RuntimeError) as error:
            log.debug("%s", step.name, exc_info=True)
            missing[step.name] = f"failed: {str(error).splitlines()[0]}"
    return done, missing


def _bound(step: Step, needed: Results) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: step.make(folder, needed)
