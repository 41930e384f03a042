"""``lmkv serve``: vLLM's server with lmkv set up. Becomes vLLM, and imports nothing of it."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

from lmkv.config import ENVIRONMENT_PREFIX, Config
from lmkv.errors import ConfigError
from lmkv.serving import kv_transfer_config, server_command
from lmkv.values import split_paths

FLAG = "--kv-transfer-config"

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Click's settings for the command: what it does not know is vLLM's."""


def _option(spec: Field[Any]) -> inspect.Parameter:
    """The command line's option for one setting; its help is the setting's own words."""
    option = "--" + spec.name.replace("_", "-")
    words = [f"{option}/--no{option[1:]}" if isinstance(spec.default, bool) else option]
    info = typer.Option(
        *words,
        envvar=ENVIRONMENT_PREFIX + spec.name.upper(),
        help=spec.metadata["doc"],
        metavar=None if isinstance(spec.default, bool) else (spec.metadata["unit"] or "text"),
        rich_help_panel="Settings of lmkv",
    )
    kind = bool if isinstance(spec.default, bool) else str
    return inspect.Parameter(
        spec.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, info],
    )


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives `command` an option for every setting of lmkv but `path`, in place of `**settings`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        command(*args, **kwargs)

    known = inspect.signature(command, eval_str=True)
    own = [p for p in known.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    settings = [_option(spec) for spec in fields(Config) if spec.name != "path"]
    vars(wrapper)["__signature__"] = known.replace(parameters=[*own, *settings])
    return wrapper


@_with_settings
def serve(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Hugging Face name or folder.", show_default=False),
    ],
    directory: Annotated[
        str,
        typer.Option(
            "--dir",
            metavar="DIR",
            envvar="LMKV_PATH",
            show_default=False,
            help="Directory that holds the chunks; engines that name the same one share them. "
            'Several are separated by ":", as in PATH; engines that share name the same set.',
        ),
    ],
    **settings: str | bool | None,
) -> None:
    """Serve MODEL with vLLM and lmkv over the directory DIR, or over several.

    This is `vllm serve` with --kv-transfer-config written for you. All words
    that are not listed below are vLLM's and are passed on as they are:

    lmkv serve MODEL --dir /mnt/kv --port 8001 -tp 2

    The --kv-transfer-config is printed, for those who want to give it to
    `vllm serve` themselves. Then this process becomes vLLM's server: signals
    and the exit status are vLLM's. Exit status before that: 2 on wrong usage
    or a setting that cannot work, 1 without vLLM.
    """
    if model.startswith("-"):
        raise typer.BadParameter(f"MODEL comes first, before {model}", param_hint="MODEL")
    for word in context.args:
        if _means_ours(word):
            raise typer.BadParameter(
                f"lmkv serve writes {FLAG} itself: leave it out and give lmkv's settings as "
                "options, or use `vllm serve`",
                param_hint=FLAG,
            )
    if not directory:
        raise typer.BadParameter("name a directory", param_hint="--dir")
    if not all(split_paths(directory)):
        raise typer.BadParameter(f"a name is empty in {directory!r}", param_hint="--dir")
    paths = [os.path.abspath(os.path.expanduser(one)) for one in split_paths(directory)]
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        Config.from_sources({"path": paths, **given}, os.environ)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    if importlib.util.find_spec("vllm") is None:
        typer.echo(
            f"error: {sys.executable} has no vLLM: install lmkv into the environment that vLLM "
            "is in",
            err=True,
        )
        raise typer.Exit(1)
    transfer = kv_transfer_config(paths if len(paths) > 1 else paths[0], **given)
    typer.echo(f"lmkv: vLLM starts with {FLAG} {shlex.quote(transfer)}")
    command = [*server_command(model), FLAG, transfer, *context.args]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)


def _means_ours(word: str) -> bool:
    """Whether vLLM's parser takes `word` for its --kv-transfer-config.

    It reads underscores as dashes, takes `--name=value`, `--name.key value` and `--name+ value`,
    and any beginning of a name that is no other option's too.
    """
    name = re.split(r"[=.+]", word, maxsplit=1)[0].replace("_", "-")
    return FLAG.startswith(name) and name.startswith("--kv-t")
