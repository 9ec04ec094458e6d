"""What a stage says while it works: event lines for a launcher, plain lines for a person."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

EVENT = "@modelyard "  # a line of a stage's output that starts so is an event; every other line is log


def say(event: dict[str, Any]) -> None:
    """Tell whoever started us what happens. Events: note (text), progress (step, total, numbers), result, error."""
    if os.environ.get("MODELYARD_EVENTS"):
        line = EVENT + json.dumps(event)
    elif event["event"] == "progress":
        numbers = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in event.items() if k not in ("event", "unit", "step", "total"))
        line = f"{event['step']}/{event['total']} {event.get('unit', '')} " + " ".join(numbers)
    else:
        line = str(event.get("text", event))
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the launcher was killed; what is left to do is a checkpoint, and nobody listens
        sys.stdout = sys.stderr = open(os.devnull, "w")
