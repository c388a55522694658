"""Long measurements as steps: each leaves its numbers in a folder of its own, and a second call
goes on where the first ended."""

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


@dataclass(frozen=True)
class Step:
    """One measurement. `make(partial folder, the steps that it needs)` returns numbers that JSON
    can hold; `settings` are all that they depend on, `needs` names the steps that must be there
    before, and `about_s` how long it takes on the slowest machine meant."""

    name: str
    about_s: float
    make: Callable[[Path, dict[str, stages.Done]], dict[str, Any]]
    settings: Any = None
    needs: tuple[str, ...] = ()


def run(
    steps: Sequence[Step], folder: Path, limit_s: float, clock: Callable[[], float] = time.monotonic
) -> tuple[dict[str, stages.Done], dict[str, str]]:
    """Every step in order, unless it is done already, cannot be done, or would end after `limit_s`;
    what is left out comes with its reason. What a step found lies in FOLDER/NAME/stage.json."""
    start, done, missing = clock(), {}, {}
    for step in steps:
        lacking = [name for name in step.needs if name not in done]
        if lacking:
            missing[step.name] = f"needs {', '.join(lacking)}"
            continue
        where = folder / step.name.replace(", ", "-").replace(" ", "-")
        key = stages.key_of(step.name, step.settings, [done[name].made for name in step.needs])
        known, left = stages.read_record(where), limit_s - (clock() - start)
        if (known is None or known.key != key) and step.about_s > left:
            missing[step.name] = (
                f"takes about {step.about_s:.0f} s, {max(left, 0):.0f} s were left; call again "
                "to go on"
            )
            continue
        log.info("%s: about %.0f s", step.name, step.about_s)
        try:
            done[step.name] = stages.run(
                where,
                key,
                lambda partial: step.make(partial, {name: done[name] for name in step.needs}),
            )
        except (
            SldError,
            RuntimeError,
        ) as error:  # one method that fails, as for lack of memory, says nothing of the others
            log.debug("%s", step.name, exc_info=True)
            missing[step.name] = f"failed: {str(error).splitlines()[0]}"
    return done, missing
