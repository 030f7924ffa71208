"""The command line: the verbs, and exceptions turned into one line and an exit code. Imports no torch."""

import atexit
import errno
import gc
import importlib
import inspect
import io
import math
import mmap
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from typing import Annotated, Any

import typer
from typer.exceptions import Exit, TyperException

from gencli import __version__, registry
from gencli.commands._lazy import LazyGroup
from gencli.console import Console, leave_streams, prepare_streams
from gencli.errors import ClosedPipeError, GencliError, ModelError, ResourceError, UsageError, did_you_mean
from gencli.lazy import COMPUTING, hollow
from gencli.stopping import Signalled, leave_on_signals, leaving

_COMPLETION = "_GENCLI_COMPLETE"  # set by the scripts that Typer makes for shells
_RESERVE = 2**26  # bytes
_AMPLE = 2**33  # bytes of addresses in which torch loads for sure


class _Verbs(LazyGroup):
    """The verbs: `gencli.commands.VERB` holds a function of that name, or the Typer group `app`."""

    def summaries(self) -> dict[str, str]:
        return {
            "train": "Fit a model of a family to data.",
            "sample": "Draw new examples, or decode codes.",
            "encode": "Turn examples into codes.",
            "interpolate": "Draw a path between examples, seeds or codes.",
            "evaluate": "Measure a model, with error bars; a gate for CI.",
            "export": "Write ONNX, torch.export, one-file safetensors or a model card.",
            "families": "List what is installed and what it can do.",
        }

    def make(self, name: str) -> Any:
        if name not in self.summaries():
            raise UsageError(f"no command is called {name!r}{did_you_mean(name, self.summaries())}")
        module = importlib.import_module(f"gencli.commands.{name}")
        return getattr(module, "app", None) or getattr(module, name)


app = typer.Typer(
    cls=_Verbs, name="gencli", no_args_is_help=True,
    help="Deep generative models from the shell: one set of verbs for every family.",
    epilog="RUN is a run directory, a .safetensors file or hf://user/name; DATA a path, - for stdin, or the name of a "
           "known data set.",
)


def _version(show: bool) -> None:
    if show:
        print(f"gencli {__version__}")
        raise Exit()


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                help="Print the version and exit.")] = False) -> None:
    pass


def _options() -> Iterator[set[str]]:
    """The options of every verb, family and kind, some at a time."""
    for verb in registry.VERBS:
        module = importlib.import_module(f"gencli.commands.{verb}")
        if verb != "train":
            yield set(inspect.signature(getattr(module, verb)).parameters)
            continue
        for family in registry.families.values():
            try:
                yield set(inspect.signature(module.command(family, family.load())).parameters)
            except ModelError:  # a broken plugin; using its family reports it
                continue


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with a code of the table in README.md."""
    atexit.register(gc.freeze)  # else Python takes torch apart, object by object, for half a second
    leave_on_signals()
    prepare_streams()
    code = _complete() if _COMPLETION in os.environ else run(sys.argv[1:] if args is None else args)
    leave_streams()
    from gencli.limits import process_count

    if process_count() > 1:
        # Threads of torch.distributed may still hold tensors, which sometimes aborts the process while Python shuts
        # down (pytorch/pytorch#179291). All files are closed and published by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _complete() -> int:
    """Answer a shell that completes a command line: without torch, and silently whatever is wrong."""
    from gencli.commands._completion import join_words

    begun = join_words() if os.environ[_COMPLETION] == "complete_bash" else ""
    os.environ["COLUMNS"] = "1000"  # typer breaks descriptions at the width of a terminal, and an answer is one line
    answer, shell = io.StringIO(), sys.stdout
    with hollow(*COMPUTING), suppress(GencliError, OSError), redirect_stdout(answer):
        try:
            app([], prog_name="gencli", standalone_mode=False)
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else 1
        finally:
            shell.write("".join(line.removeprefix(begun) for line in answer.getvalue().splitlines(True)))
    return 0


def run(args: list[str]) -> int:
    """Run the command line; the exit code."""
    console, verbose = Console(json="--json" in args), "-v" in args or "--verbose" in args
    Console.answered = False
    limit = _address_limit()
    # Room to say so when that is reached; addresses that nothing is written to cost no memory.
    reserve = mmap.mmap(-1, _RESERVE) if limit > 4 * _RESERVE and limit < math.inf else None
    try:
        for table in registry.TABLES:
            for clash in table.clashes():
                console.warn(clash)
        if args and args[0] in registry.VERBS and "--help" not in args:
            # The verbs import them as well; --help need not.
            from gencli.limits import keep_memory, share_processors
            from gencli.settings import check_environment

            share_processors()
            _require_room(limit)
            keep_memory()
            check_environment(_options())
        code = app(args, prog_name="gencli", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except TyperException as error:  # a usage error from Typer; that of no arguments has shown the help
        if message := " ".join(error.format_message().split()):
            console.error(message, error.exit_code)
        return error.exit_code
    except ClosedPipeError as error:
        # Python would fail again when it flushes stdout at exit: give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error.exit_code
    except GencliError as error:
        if verbose:
            console.traceback()
        console.error(str(error), error.exit_code)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except SystemExit as error:  # a signal
        return error.code if isinstance(error.code, int) else 1
    except (OSError, MemoryError) as error:  # wherever the machine reaches its limits
        if reserve:
            reserve.close()
        if verbose:
            console.traceback()
        refused = isinstance(error, OSError) and error.errno != errno.ENOMEM
        console.error(f"the system refused: {error}" if refused else _out_of_memory(limit), ResourceError.exit_code)
        return ResourceError.exit_code
    except Exit as error:
        return error.exit_code
    except Exception as error:
        if code := _interrupted(error):
            return code
        if reserve:
            reserve.close()
        if verbose:
            console.traceback()
        if isinstance(error, ImportError | SystemError) and limit < 2**32:  # a library that found no room
            console.error(_out_of_memory(limit), ResourceError.exit_code)
            return ResourceError.exit_code
        console.error(f"internal error: {type(error).__name__}: {error}; "
                      f"this is a bug in gencli: run again with -v and report what it prints", 1)
        return 1


def _interrupted(error: BaseException | None) -> int:
    """The exit code of the signal on whose way out an error was raised, else 0.

    It may have met a lock half taken, or a library that makes an error of its own of it.
    """
    while error and not isinstance(error, Signalled):
        error = error.__context__
    return error.code if isinstance(error, Signalled) and isinstance(error.code, int) else leaving()


def _address_limit() -> float:
    """Bytes of addresses that this process may use (ulimit -v)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return math.inf if limit == resource.RLIM_INFINITY else limit


def _require_room(limit: float) -> None:
    """ResourceError if numpy and torch do not load within a limit of addresses: there they may also abort or exit."""
    if limit > _AMPLE or "torch" in sys.modules:
        return
    script = "import numpy, torch; torch.ones(256, 256) @ torch.ones(256, 256)"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, stdin=subprocess.DEVNULL)
    if child.returncode and b"ModuleNotFoundError" not in child.stderr:
        raise ResourceError(_out_of_memory(limit))


def _out_of_memory(limit: float) -> str:
    if limit == math.inf:
        return "the machine is out of memory"
    return (f"this process may use {limit / 2**30:.1f} GiB of addresses (ulimit -v), and that is not enough: torch "
            f"alone takes 4; raise the limit")
