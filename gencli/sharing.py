"""Publishing a run on the Hugging Face hub: model, card, settings and samples, without what is private.

    from gencli.sharing import share
    share("runs/vae", "hf://user/name", license="mit")

What goes up says where on this machine things lay only by their last names: of an absolute path that a setting, a
command or a result names, the folders are left out.
"""

import hashlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gencli import hub, inference, registry, runs
from gencli.escape import to_json
from gencli.manifests import MANIFEST
from gencli.model import Model
from gencli.reports.card import measured, model_card, newest_samples
from gencli.streams import open_writer

# An absolute path with what stands before it, so that "a/b" and "https://c/d" are none; its folders are the match.
_FOLDERS = re.compile(r"""(?<![^\s=,:;|"'(\[{])(?:~[^/\s]*)?/(?:[^/\s=,:;|"']+/)*(?=[^/\s])""")


def public(value: Any) -> Any:
    """A JSON value in which absolute paths are their last names alone: `/home/me/faces:test` is `faces:test`."""
    if isinstance(value, dict):
        return {name: public(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [public(entry) for entry in value]
    if not isinstance(value, str):
        return value
    name, equals, setting = value.partition("=")
    if equals and setting.startswith(("/", "~")) and not name.startswith(("/", "~")):
        return f"{name}={public(setting)}"
    if value.startswith(("/", "~")):  # it may hold spaces
        value = value.rstrip("/").rpartition("/")[2]
    return _FOLDERS.sub("", value)


def share(run: str, name: str, license: str | None = None, private: bool = False) -> str:
    """Publish RUN as `hf://user/name`; the address of the commit.

    Args:
        license: as in `model_card`. private: whether a repository that has to be made is for its owner alone.

    Raises:
        UsageError: `name` is no name on the hub, or there is no token that may write there.
        ModelError: the run cannot be read; no extra `hub`. ResourceError: the network is not there.
    """
    hub.require_token(name)  # before the model is read
    with tempfile.TemporaryDirectory() as folder:
        family, steps = _fill(Path(folder), run, name, license)
        return hub.upload(Path(folder), name, f"{family}, {steps} steps", private)


def _fill(folder: Path, run: str, name: str, license: str | None) -> tuple[str, int]:
    """Put what is to be published into a folder; the family, and the steps it was trained."""
    model, card = runs.load_model(run)
    # What an example is, such as the words of a vocabulary, is the model's and stays.
    card = card.model_copy(update={"data": public(card.data), "data_settings": public(card.data_settings),
                                   "config": public(card.config), "origin": _public_origin(card.origin)})
    source = runs.run_folder(run)
    settings = public(runs.Run(source).config()) if source else {}
    _write(folder / "config.json", to_json({"versions": {"gencli": card.gencli}} | settings, indent=2) + "\n")
    if source:
        _write(folder / "eval" / "result.json", to_json(public(measured(source))))
    samples = newest_samples(source) if source else None
    (folder / "samples").mkdir()
    if samples:
        shutil.copyfile(samples, folder / "samples" / samples.name)
    elif "sample" in model.abilities() and model.spec.condition is None:
        _draw(folder / "samples", model, card.trained)
    content = runs.model_bytes(model, card)
    (folder / "model.safetensors").write_bytes(content)
    _write(folder / "README.md", model_card(model, card, folder, address=name, license=license))
    shutil.rmtree(folder / "eval", ignore_errors=True)  # its numbers stand in the card
    sums = {path.name: [hashlib.sha256(path.read_bytes()).hexdigest()] for path in folder.iterdir() if path.is_file()}
    _write(folder / MANIFEST, to_json(sums, indent=2) + "\n")
    return card.family, card.steps


def _public_origin(origin: runs.Origin | None) -> runs.Origin | None:
    return origin and origin.model_copy(update={"config": public(origin.config),
                                                "origin": _public_origin(origin.origin)})


def _draw(folder: Path, model: Model, step: int) -> None:
    ending, count = registry.kind_of(model.spec).shown.preview
    with open_writer(str(folder / f"step-{step}.{ending}"), model.spec, total=count) as writer:
        for batch in inference.sample(model, range(count)):
            writer.write(batch)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
