"""Runs on the Hugging Face hub: `hf://user/name`, or `hf://user/name@revision`, a branch, tag or commit.

A run is fetched into the hub's own cache (`HF_HOME`) and read from there: once fetched it is found without a network,
and `HF_HUB_OFFLINE=1` does not even ask. The token is that of `hf auth login`, or `HF_TOKEN`; `HF_ENDPOINT` names
another server. Needs the extra `hub`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from gencli.errors import GencliError, ModelError, ResourceError, UsageError, first_line, install
from gencli.stopping import Signalled

SCHEME = "hf://"
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^@\s]+))?", re.ASCII)
# What a model needs to be used; README and samples are for people.
_USED = ("model.safetensors", "config.json", "manifest.json")
_LOG_IN = "log in with 'hf auth login', or set HF_TOKEN"


def is_remote(name: object) -> bool:
    """Whether a name of a run or an output is that of one on the hub."""
    return str(name).startswith(SCHEME)


def parse(name: str) -> tuple[str, str | None]:
    """`hf://user/name@revision` -> ("user/name", "revision" or None)."""
    if not (match := _NAME.fullmatch(name)):
        raise UsageError(f"{name}: expected hf://user/name, or hf://user/name@revision")
    return match[1], match[2]


@cache
def fetch(name: str) -> Path:
    """The folder with the files of a run on the hub, up to date where the network is there.

    Raises:
        UsageError: it is no such name. ModelError: there is no such run, or none that may be read; no extra `hub`.
        ResourceError: the network is not there, and the run was not fetched before.
    """
    repository, revision = parse(name)
    hub = _library()
    with _explained(name, f"check the name, or, for a private one, {_LOG_IN}"):
        folder = Path(hub.snapshot_download(repository, revision=revision, allow_patterns=list(_USED)))
    if not (folder / _USED[0]).exists():
        raise ModelError(f"{name} holds no {_USED[0]}; it is not a run of gencli")
    return folder


def require_token(name: str) -> None:
    """Before the work whose result goes to the hub: UsageError if it is no name there, or nobody is logged in."""
    parse(name)
    if not _library().get_token():
        raise UsageError(f"{name}: to publish needs a token of the hub that may write; {_LOG_IN}")


def upload(folder: Path, name: str, message: str, private: bool = False) -> str:
    """Publish the files of a folder in one commit, the repository made if there is none; the address of the commit.

    Raises:
        ResourceError: the network is not there. UsageError: the token may not write there.
    """
    repository, revision = parse(name)
    hub = _library()
    with _explained(name, f"check the name, and that the token may write there; {_LOG_IN}"):
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, revision=revision, commit_message=message,
                                 delete_patterns="samples/*")  # of an earlier state
    return str(done.commit_url)


def _library() -> Any:
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise ModelError(f"{SCHEME} needs the package huggingface_hub: {install('hub')}") from error
    disable_progress_bars()
    huggingface_hub.logging.set_verbosity_error()
    return huggingface_hub


@contextmanager
def _explained(name: str, hint: str) -> Iterator[None]:
    """Turn what the library raises into one sentence; `hint`: what to do if the server knows no such repository."""
    from huggingface_hub import constants, errors

    try:
        yield
    except (GencliError, Signalled):
        raise
    except errors.HFValidationError as error:
        raise UsageError(f"{name} is no name on the hub: {first_line(error)}") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise ResourceError(f"{name}: {reason}, and it was not fetched before; run this once with a network") from error
    except errors.GatedRepoError as error:
        raise ModelError(f"{name} is gated: ask for access on its page, and {_LOG_IN}") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{name}: the repository has no such branch, tag or commit; leave @revision out for the "
                         f"newest") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"no run is called {name} on the hub, or not for you; {hint}") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise UsageError(f"{name}: the hub refuses ({status}); {hint}") from error
        raise ResourceError(f"{name}: the hub answers {status or first_line(error)}; try again later") from error
    except OSError as error:
        raise ResourceError(f"{name}: {error.strerror or first_line(error)}; what is fetched goes to "
                            f"{constants.HF_HUB_CACHE}, and HF_HOME names another folder") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # or httpx2: of the network
            raise
        raise ResourceError(f"{name}: the hub cannot be reached ({first_line(error)}); check the network, or set "
                            f"HF_HUB_OFFLINE=1 to use what was fetched before") from error

