"""The features of InceptionV3 (Szegedy et al. 2016, arXiv:1512.00567), on which published FIDs are based.

The network and its weights are those of the package torch-fidelity, which agree with the original TensorFlow ones.
The weights are fetched once, when asked for, and used only if they are the published bytes.
"""

import hashlib
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gencli.cache import cache_folder, locked
from gencli.errors import ModelError, install
from gencli.metrics import Inputs
from gencli.metrics.features import Space
from gencli.model import Batch
from gencli.publish import publish

_NAME = "weights-inception-2015-12-05-6726825d.pth"
_ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{_NAME}"
_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Inception(Space):
    """Pictures (B, C, H, W) in [0, 1] of any size, C 1 or 3 -> (B, 2048), and 1,008 classes of ImageNet."""

    name = "inception"
    block = 50

    def __init__(self, network: Any, device: torch.device):
        self.network, self.device = network.to(device), device
        self.identity, self.digest = {"weights": _SHA256, "device": device.type}, _SHA256

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        levels = (batch.x * 255).round().clamp(0, 255).byte().contiguous()
        features, logits = self.network(levels.expand(-1, 3, -1, -1))
        return features, logits.log_softmax(1)


def inception(inputs: Inputs) -> Space:
    """The space `inception`.

    Raises:
        ModelError: the package torch-fidelity or the weights are missing.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ModelError(f"features inception need the package torch-fidelity: {install('metrics')}") from error
    path = weights(inputs.download, inputs.note)
    network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    return Inception(network, torch.device("cpu") if inputs.model is None else inputs.model.device)


def weights(download: bool, note: Callable[[str], None] = lambda sentence: None) -> Path:
    """The file of the weights, in the cache folder; fetched if it is missing and `download` allows it.

    Raises:
        ModelError: it is missing, cannot be fetched, or is not the published file.
    """
    path = cache_folder() / _NAME
    if path.exists() and not path.is_file():
        raise ModelError(f"{path} is no regular file; remove it")
    if not path.exists() and not download:
        raise ModelError(f"the weights of inception are missing: add --download, or put {_ADDRESS} at {path}")
    with locked(path, note):
        if not path.exists():
            try:
                with urllib.request.urlopen(_ADDRESS) as response:
                    content = response.read()
            except OSError as error:
                raise ModelError(f"the weights of inception cannot be fetched ({error}); put {_ADDRESS} at {path}"
                                 ) from error
            _check(content, _ADDRESS)
            with publish(path) as file:
                file.write(content)
    _check(path.read_bytes(), str(path))  # torch-fidelity unpickles it: only the published bytes
    return path


def _check(content: bytes, where: str) -> None:
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise ModelError(f"{where} is not the published file of inception's weights (SHA-256 {_SHA256[:16]}...); "
                         f"remove it and fetch {_ADDRESS} again")
