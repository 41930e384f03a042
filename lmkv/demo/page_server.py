"""`lmkv demo`: the page, and the engines behind it, in one process."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from lmkv.demo import document as documents
from lmkv.demo import plan as plans
from lmkv.demo import ports
from lmkv.demo.backends import AttachedEngines, OwnedEngines
from lmkv.demo.errors import DemoError
from lmkv.demo.fleet import Fleet
from lmkv.demo.plan import Settings
from lmkv.demo.run_folder import run_folder
from lmkv.demo.session import Session

USUAL_PORT = 8501
_LENGTH = 8192  # tokens of context: people paste documents of their own
_SCRIPT = Path(__file__).with_name("page.py")

_OPTIONS = {
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "viewer",
    "global.developmentMode": False,
    "logger.level": "warning",
    "runner.magicEnabled": False,
    "runner.postScriptGC": False,  # several times a second it would cost a core's third
    "server.enableStaticServing": False,
    "server.fileWatcherType": "none",
    "server.headless": True,
    "server.maxUploadSize": 16,
    "server.showEmailPrompt": False,
    # By ground, and never for both: a theme of one's own has no dark side.
    "theme.light.primaryColor": "#0b7a5c",
    "theme.dark.primaryColor": "#0b7a5c",
}

_session: Session | None = None


def session() -> Session:
    """The one session of this process; for the page."""
    assert _session is not None
    return _session


def run(settings: Settings, host: str, port: int | None, console: Console) -> None:
    """Starts the engines and serves the page until interrupted. Raises `DemoError`."""
    with console.status("preparing the model"):
        plan = plans.make(settings, _LENGTH)
    with run_folder() as folder:
        directory = plans.make_directory(settings, folder)
        plan = plan.with_directory(directory)
        with Fleet(plan.specs, folder) as fleet:
            here = Session(
                OwnedEngines(fleet, settings.timeout_s),
                directory=directory,
                owns_directory=settings.directory is None,
                document=plan.document if settings.document is not None else None,
                question=settings.question,
                max_tokens=settings.max_tokens,
            )
            console.print(
                f"Starting {len(plan.specs)} engines with {plan.model}; "
                "the page shows when they are ready."
            )
            _serve(here, host, port, console)
            with console.status("stopping the engines"):
                fleet.stop()


def attach(
    addresses: Sequence[tuple[str, str]],
    settings: Settings,
    host: str,
    port: int | None,
    console: Console,
) -> None:
    """Serves the page over engines that already run, at pairs of URL and kind."""
    here = Session(
        AttachedEngines(addresses, settings.timeout_s),
        directory=settings.directory,
        document=documents.load(settings.document) if settings.document is not None else None,
        question=settings.question,
        max_tokens=settings.max_tokens,
    )
    _serve(here, host, port, console)


def _serve(here: Session, host: str, port: int | None, console: Console) -> None:
    from streamlit.web import bootstrap

    address = _free_address(host, port)
    options = {**_OPTIONS, "server.address": host, "server.port": address}
    flags = {name.replace(".", "_"): value for name, value in options.items()}
    with here, _as_the_session(here):
        shown = "localhost" if _any_or_loopback(host) else host
        ends = "it, and the engines" if here.can_restart else "it; the engines stay"
        console.print(f"Open http://{shown}:{address}  (Ctrl-C ends {ends})")
        bootstrap.load_config_options(flags)
        bootstrap.run(str(_SCRIPT), False, [], flags)


@contextlib.contextmanager
def _as_the_session(here: Session) -> Iterator[None]:
    global _session  # noqa: PLW0603 - Streamlit runs the page as a script: it can be given nothing
    _session = here
    try:
        yield
    finally:
        _session = None


def _free_address(host: str, port: int | None) -> int:
    """The wanted port, or the usual one if it is free, or any; raises `DemoError`."""
    if port is not None:
        return ports.choose(1, port, host=host)[0]
    try:
        return ports.choose(1, USUAL_PORT, host=host)[0]
    except DemoError:
        return ports.choose(1, host=host)[0]


def _any_or_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified
