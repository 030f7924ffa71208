"""Groups of commands that are imported when they run: listing them needs only their names."""

import functools
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from gencli.errors import ClosedPipeError


class LazyGroup(TyperGroup):
    """A group that knows its commands' names and summaries, and makes the one that runs."""

    _invoked: str | None = None
    asks_for_help = False  # whether the command that runs is to show its help

    def summaries(self) -> dict[str, str]:
        """Every command's name and its line in the list."""
        raise NotImplementedError

    def make(self, name: str) -> Callable[..., Any] | typer.Typer:
        """The function of a command, or a group; an error if there is none of that name."""
        raise NotImplementedError

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.summaries())

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self._invoked, self.asks_for_help = args[0], "--help" in args
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name != self._invoked:
            return _command(cmd_name, _listed, self.summaries()[cmd_name])
        made = self.make(cmd_name)
        if isinstance(made, typer.Typer):
            return typer.main.get_command(made)
        return _command(cmd_name, made, self.summaries().get(cmd_name))


def _command(name: str, function: Callable[..., Any], summary: str | None) -> Any:
    @functools.wraps(function)
    def run(*args: Any, **values: Any) -> Any:
        try:
            return function(*args, **values)
        except BrokenPipeError as error:  # or Typer would turn it into an exit code of its own
            raise ClosedPipeError("standard output was closed") from error

    single = typer.Typer(add_completion=False)
    single.command(name, help=function.__doc__ or summary, short_help=summary)(run)
    return typer.main.get_command(single)


def _listed() -> None:
    pass
