"""`audit.json`: what of an audit is finished."""

import json
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..storage import differences, read_json, write_json
from .verdicts import ERASED, SUPPRESSED, overall, verdicts

FORMERLY = {"report", "report_pictures"}  # options that say nothing of a figure, which older files have


class Book:
    """`audit.json`: finished parts, written at once, and the options that they hold for. Without a file nothing is kept.

    Raises:
        InputError: the file holds parts of other options.
    """

    def __init__(self, file: Path | None, options: dict):
        self.file, options = file, json.loads(json.dumps(options))
        self.content: dict[str, Any] = {"options": options, "sets": {}, "parts": {}}
        old = read_json(file) if file else {}
        if old:
            changed = differences({k: v for k, v in old["options"].items() if k not in FORMERLY}, options)
            if changed:
                raise InputError(
                    f"'{file}' holds an audit under other options ({', '.join(changed)}); "
                    "give them again, or move the file away."
                )
            self.content["parts"] = old["parts"]

    def part(self, name: str, measure, source: str | None = None) -> dict:
        """What `measure()` returns, from the file if it is there; `source` is what the part depends on beside the options."""
        parts = self.content["parts"]
        if name not in parts or parts[name].get("source") != source:
            print(f"audit: {name}", flush=True)
            started = time.perf_counter()
            found = measure() | {"seconds": round(time.perf_counter() - started, 1)}
            parts[name] = found | ({"source": source} if source else {})
            self.write()
        return parts[name]

    def close(self, command: str) -> None:
        """Add verdicts and what made them."""
        lines = verdicts(self.content)
        self.content |= {
            "suppression": ERASED if self.content["sets"].get("erased") else SUPPRESSED,
            "overall": overall(lines),
            "verdicts": lines,
            "command": command,
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "made_with": {p: version(p) for p in ("torch", "transformers", "diffusers", "datasets")},
        }
        self.write()

    def write(self) -> None:
        if self.file:
            write_json(self.file, self.content)
