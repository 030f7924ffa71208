"""gencli: one set of verbs for every family of deep generative models.

    import gencli
    gencli.train("vae", "digits", "runs/vae", binarize="dynamic", steps=2000)
    model = gencli.load("runs/vae")                        # ready to sample, encode and score
    for batch in gencli.inference.sample(model, range(64), seed=1): ...
"""

import importlib
from typing import TYPE_CHECKING, Any

from gencli.version import __version__ as __version__

if TYPE_CHECKING:
    from gencli.model import Model


def load(run: str, device: str = "cpu") -> "Model":
    """The trained model of a run directory or `.safetensors` file, in evaluation mode.

    Raises:
        gencli.errors.ModelError: the file is missing, damaged or not a gencli file.
    """
    from gencli.runs import load_model

    return load_model(run, device)[0]


def __getattr__(name: str) -> Any:
    # Without an import of their own, and without torch until they are used.
    if name in ("data", "inference"):
        return importlib.import_module(f"gencli.{name}")
    if name == "train":
        return importlib.import_module("gencli.training").train
    raise AttributeError(f"module 'gencli' has no attribute {name!r}")
