"""``serve``: a server with WeLM's HTTP API and OpenAI's."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from welm._cli.arguments import Real, Whole, add_loading, loading, only_path, text
from welm._cli.parser import did_you_mean
from welm._cli.streams import Failure, say, shown
from welm._cli.terminal import Progress

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

SUMMARY = """Serves a model over HTTP: WeLM's API, OpenAI's, and a page to try it at /.

An option can also be in the environment, as WELM_SERVE_PORT=8000, or in a TOML file (--config), as port = 8000. A flag
goes before the environment, and that before the file. SIGTERM and Ctrl-C end the server after the open requests are
answered. The log on stderr has a line of JSON for each request. Needs pip install "welm[serve]"."""
EXAMPLES = (
    "serve smollm2.gguf",
    "serve smollm2.gguf --host 0.0.0.0 --port 80 --api-keys keys.txt --model-name smollm2",
    "serve --config welm.toml",
)

PREFIX = "WELM_SERVE_"

_KUBERNETES = re.compile(r"WELM_SERVE_(SERVICE_.*|PORT_.*|PORT=[a-z]+://.*)", re.DOTALL)
"""Variables that Kubernetes sets for a service of the name `welm-serve`."""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds flags and positional arguments."""
    add_loading(parser, path=False, without=("queue_limit",))
    add = parser.add_argument_group("server").add_argument
    add("--host", type=text, metavar="ADDRESS", help="address to listen at (default: 127.0.0.1)")
    add("--port", type=Whole(0, 65535), metavar="N", help="port; 0 is one that is free (default: 8000)")
    add(
        "--api-keys",
        metavar="FILE",
        help="file with a key and the name of its owner on each line; without it everybody is served",
    )
    add(
        "--without-keys",
        action="store_true",
        help="serve everybody who reaches the server, also from other machines",
    )
    add(
        "--model-name",
        type=text,
        action="append",
        metavar="NAME",
        help="the model's name for clients; may be given several times (default: the name of its file)",
    )
    add("--config", metavar="FILE", help="TOML file with options")
    add(
        "--queue-limit",
        type=Whole(1),
        metavar="N",
        help="most requests of a client that wait, and most prompts of a request; of all clients together four times "
        "as many may wait (default: 1024)",
    )
    add(
        "--timeout",
        type=Real(0.001),
        metavar="SECONDS",
        help="longest time of a request, waiting included (default: 600)",
    )
    add(
        "--max-body",
        type=Whole(1),
        metavar="BYTES",
        help="largest body of a request (default: 8388608)",
    )
    add(
        "--drain",
        type=Real(0, 86_400),
        metavar="SECONDS",
        help="time for open requests at the end (default: 30)",
    )
    add(
        "--requests-per-minute",
        type=Whole(0),
        metavar="N",
        help="quota of a key for WeLM's API; 0 is none (default: 30)",
    )
    add(
        "--characters-per-day",
        type=Whole(0),
        metavar="N",
        help="quota of a key for WeLM's API, in generated characters; 0 is none (default: 1000000)",
    )
    add("--quota-everywhere", action="store_true", help="the quotas hold for OpenAI's API as well")
    add("--quota-file", metavar="FILE", help="SQLite file that keeps the quotas over a restart")
    add(
        "--share-prefixes",
        action="store_true",
        help="share computed beginnings of prompts between keys, who can then learn of each other's prompts",
    )
    add(
        "--origin",
        type=text,
        action="append",
        metavar="URL",
        help="a web site whose pages may use the server; may be given several times",
    )
    add("--no-page", dest="page", action="store_false", help="no page at /")
    add("--log-prompts", action="store_true", help="have prompts and answers in the log")
    parser.set_defaults(parser=parser)


def run(args: Namespace) -> int:
    """Runs the command; gives the exit code."""
    _complete(args)
    try:
        import welm.serve
        from welm.serve.keys import read_keys
        from welm.serve.server import is_loopback, listen
        from welm.serve.server import run as serve
        from welm.serve.settings import name_of
    except ImportError as error:
        raise Failure(f'{error.name} is missing: pip install "welm[serve]"') from None

    host, port = getattr(args, "host", "127.0.0.1"), getattr(args, "port", 8000)
    try:
        keys = read_keys(args.api_keys) if hasattr(args, "api_keys") else {}
    except ValueError as error:
        raise Failure(f"argument --api-keys: {error}") from None
    if not keys and not is_loopback(host) and not hasattr(args, "without_keys"):
        args.parser.error(
            f"argument --host: {host} is reached from other machines; expected --api-keys, or --without-keys"
        )
    path = only_path(args)
    name = name_of(path or welm.NANO)
    options = loading(args)
    settings = welm.serve.Settings(
        model_names=tuple(getattr(args, "model_name", (name,))),
        keys=keys,
        parallel=options.get("max_running", 64),
        origins=tuple(getattr(args, "origin", ())),
        hosts=tuple(sorted({"localhost", "127.0.0.1", "[::1]", host}))
        if is_loopback(host) and not keys
        else (),
        **{name: getattr(args, name) for name in _SAME if hasattr(args, name)},
    )
    try:
        sock = listen(host, port)  # before the model is loaded: a port that is taken is found at once
    except OSError as error:
        raise Failure(str(error)) from None
    options["queue_limit"] = max(settings.parallel, 1024)  # what the server gives to the engine has room
    with sock:
        with Progress("loading", quiet=True) as progress:
            model = welm.Model(path, progress=progress, **options)
        try:
            app = welm.serve.app(model, settings)
        except OSError as error:
            raise Failure(f"argument --quota-file: {error}") from None
        address = f"[{host}]" if ":" in host else host
        say(f"{settings.model_names[0]} at http://{address}:{sock.getsockname()[1]} ({model.backend})")
        return serve(app, sock, drain=getattr(args, "drain", 30.0))


_SAME = (
    "queue_limit",
    "timeout",
    "max_body",
    "requests_per_minute",
    "characters_per_day",
    "quota_everywhere",
    "quota_file",
    "share_prefixes",
    "page",
    "log_prompts",
)
"""Settings that have the same name here."""

_SEVERAL = ("model_name", "origin")
"""Options that may be given several times."""


def _complete(args: Namespace) -> None:
    """Adds options of the environment and of the TOML file, where there is no flag."""
    flags = {action.dest: action for action in args.parser._actions if action.dest != "help"}
    environment = {
        name.removeprefix(PREFIX).lower(): (name, value)
        for name, value in os.environ.items()
        if name.startswith(PREFIX) and not _KUBERNETES.fullmatch(f"{name}={value}")
    }
    config = environment.pop("config", None)
    if config is not None and getattr(args, "config", None) is None:
        args.config = config[1]
    file = _read_toml(args.config) if getattr(args, "config", None) is not None else {}
    given = {name: (f"{args.config}: {name}", value) for name, value in file.items()}
    for name, (where, value) in [*given.items(), *environment.items()]:
        if name not in flags or name == "config":
            raise Failure(f"{where}: unknown option{did_you_mean(name, flags)}")
        given[name] = (where, value)
    for name, (where, value) in given.items():
        on_the_line = args.path if name == "model" else None
        if getattr(args, name, None) is None and on_the_line is None:
            _set(args, flags[name], where, value)


def _set(args: Namespace, flag: argparse.Action, where: str, value: Any) -> None:
    """Sets an option to a value that is text, or of one of TOML's types."""
    if flag.nargs == 0:  # a switch
        word = str(value).lower()
        if word not in ("true", "false", "1", "0"):
            raise Failure(f"{where}: expected true or false, got {shown(str(value))}")
        if (word in ("true", "1")) == flag.const:
            setattr(args, flag.dest, flag.const)
        return
    several = flag.dest in _SEVERAL
    match value:
        case [*values]:
            pass
        case _:
            values = [value]
    if len(values) != 1 and not several:
        raise Failure(f"{where}: expected one value, got {len(values)}")
    try:
        read = [flag.type(str(one)) if callable(flag.type) else str(one) for one in values]
    except argparse.ArgumentTypeError as error:
        raise Failure(f"{where}: {error}") from None
    setattr(args, flag.dest, read if several else read[0])


def _read_toml(path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: expected TOML: {error}") from None
    return {name.replace("-", "_"): value for name, value in values.items()}
