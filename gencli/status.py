"""What a run tells of itself, read from its files in a moment: without torch, without its weights, without a lock.

Whatever is damaged or missing is left out, but the model: a run whose model cannot be read is a ModelError.
"""

import fcntl
import json
import math
import os
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gencli import registry
from gencli.errors import GencliError, ModelError
from gencli.headers import read_header
from gencli.kind import describe
from gencli.settings import DataSettings, TrainSettings
from gencli.spec import parse_spec

_MOST = 2**22  # bytes of a file of JSON
_TAIL = 2**18  # bytes at the end of a log in which the last numbers are looked for
_TOLD = {"step", "phase", "lr"}  # of a line of metrics.jsonl, that are no measurements
_LENGTH = {"steps", "epochs"}  # options that are told as steps


def is_run(path: Path) -> bool:
    """Whether a path is a run directory by its looks, or a model file."""
    return (path / "config.json").is_file() or (path.suffix == ".safetensors" and path.is_file())


def status(run: str) -> dict[str, Any]:
    """All about a run, as `families RUN --json` prints it.

    `state`: "finished", "interrupted", "running" or, of a model file alone, "model". Sizes in bytes, times in ISO 8601
    (UTC) and `age`, the seconds since the last change. What is not known is None.

    Raises:
        ModelError: there is no such run; its model or its settings are damaged.
    """
    path = Path(run)
    folder = path if path.is_dir() else None
    model = path / "model.safetensors" if folder else path
    card = _card(model) if model.exists() else {}
    config = read_object(path / "config.json") if folder else {}
    config = config if "family" in config else {}  # else it is of another program
    if folder and not (card or config):
        raise ModelError(f"{run} is not a run: it holds neither config.json nor model.safetensors")
    if not (folder or card):
        raise ModelError(f"no run or model file is called {run}; expected a run directory or a .safetensors file")
    newest = read_object(_newest_checkpoint(path) / "state.json") if folder else {}
    settings = {**card.get("data_settings", {}), **card.get("config", {}), **config}
    family = str(card.get("family") or config.get("family"))
    done = max(_whole(newest.get("step")), _whole(card.get("stopped") or card.get("steps")))
    asked = _whole(newest.get("total")) or _whole(settings.get("steps")) or None
    holder = _holder(path) if folder else None
    over = done >= (asked or math.inf) or newest.get("stopped_early") is True
    # Checkpoints may be deleted once a training is over.
    state = "model" if not folder else "running" if holder else \
        "finished" if card and (over or not newest) else "interrupted"
    logged = list(_logged(path / "metrics.jsonl")) if folder else []
    changed = max((file.stat().st_mtime for file in _files(path)), default=0.0)
    return {
        "run": run, "family": family, "state": state, "holder": holder,
        "data": {"name": card.get("data") or config.get("data"), "what": _describe(card.get("spec")),
                 "examples": card.get("examples"), "fingerprint": card.get("fingerprint") or config.get("fingerprint")},
        "options": _unusual(family, settings),
        "steps": {"done": done, "asked": asked, "kept": card.get("steps") if card.get("stopped") else None},
        "parameters": read_header(model)[1] if card else None,
        "bytes": {"model": model.stat().st_size if card else None, "all": sum(f.stat().st_size for f in _files(path))},
        "training": next((line for line in logged if _TOLD & line.keys() > {"step"}), None),
        "validation": next((line for line in logged if any(name.startswith("validation/") for name in line)), None),
        "evaluation": _evaluation(path) if folder else None,
        "began": config.get("date"), "changed": datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds"),
        "age": max(0, round(time.time() - changed)),
        "resume": _resume(config, run) if state == "interrupted" else None,
    }


def card_of(run: str) -> dict[str, Any]:
    """The description of a model, as JSON; ModelError if there is none, or it is damaged."""
    path = Path(run)
    return _card(path / "model.safetensors" if path.is_dir() else path)


def _card(model: Path) -> dict[str, Any]:
    metadata, _ = read_header(model)
    try:
        return dict(json.loads(metadata["gencli"]))
    except LookupError:
        raise ModelError(f"{model} is a safetensors file, but not a gencli file") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{model}: its description is damaged: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none, or it is damaged."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MOST))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _files(path: Path) -> Iterator[Path]:
    """All files of a run, or a model file alone; no links."""
    if path.is_file():
        yield path
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            with suppress(OSError):  # a training may replace it right now
                if file.is_file() and not file.is_symlink():
                    yield file


def _newest_checkpoint(run: Path) -> Path:
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return max(found, key=lambda path: int(path.name[5:]), default=run / "checkpoints")


def _holder(run: Path) -> str | None:
    """The process that holds the run, if there is one."""
    try:
        with (run / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except OSError:  # it is locked
        with suppress(OSError, ValueError):
            pid, host = (run / ".holder").read_text().split()
            return f"process {pid}" if host == socket.gethostname() else f"process {pid} on {host}"
        return "another process"


def _logged(path: Path) -> Iterator[dict[str, Any]]:
    """The last lines of a log, the newest first."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in reversed(lines):
        with suppress(ValueError, RecursionError):
            if isinstance(record := json.loads(line), dict):
                yield record


def newest_result(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest evaluation of a run, as `evaluate --json` printed it, and its file; None where there is none."""
    try:
        found = sorted((run / "eval").glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name), reverse=True)
    except OSError:
        return None
    return next(((path, document) for path in found if isinstance((document := read_object(path)).get("metrics"), list)
                 and isinstance(document.get("data"), dict)), None)


def _evaluation(run: Path) -> dict[str, Any] | None:
    """What is told of the newest evaluation."""
    if not (newest := newest_result(run)):
        return None
    path, document = newest
    return {"file": str(path), "data": f"{document['data'].get('name')}:{document['data'].get('split')}",
            "changed": datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds"),
            "metrics": [{key: metric.get(key) for key in ("name", "value", "error", "unit")}
                        for metric in document["metrics"] if isinstance(metric, dict)]}


def _describe(spec: Any) -> str | None:
    """What one example is, in words; None if it is not known, or of a kind that is not installed."""
    with suppress(GencliError, ValidationError, TypeError):
        return describe(parse_spec(spec)) if isinstance(spec, dict) else None
    return None


def _unusual(family: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the defaults of the family, of training and of reading."""
    fields = {**DataSettings.model_fields}
    for name in registry.kinds:
        with suppress(GencliError):
            fields |= registry.kind(name).Settings.model_fields
    usual = {name: field.default for name, field in {**fields, **TrainSettings.model_fields}.items()}
    with suppress(GencliError):  # of a family that is not installed only these are known
        cls = registry.families.named(family).declared()
        usual |= {name: field.default for name, field in cls.Config.model_fields.items()} | cls.defaults
    return {name: value for name, value in settings.items()
            if name in usual and name not in _LENGTH and value is not None and value != usual[name]}


def _resume(config: Mapping[str, Any], run: str) -> str | None:
    """The command that goes on with a training: the one that began it, with --resume."""
    words = [str(word) for word in config.get("argv") or ()]
    if words[:1] != ["train"]:
        return None
    kept, skip = [], False
    for word in words:
        if not skip and word not in ("--resume", "--overwrite", "-o", "--output") and not word.startswith("--output="):
            kept.append(word)
        skip = not skip and word in ("-o", "--output")
    return shlex.join(["gencli", *kept, "-o", run, "--resume"])
