"""The command line: `run`, `check-config`, `echo`, `purge`, `hash-password`, `make-token`, `cert`, `demo`.

Exit codes: 0 well; 1 an archive does not answer (`echo`), or a certificate cannot be used (`cert check`); 2 the command
line or configuration is wrong; 3 the proxy cannot start (a port in use, an address that is not there), or the storage
cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from proxy import PRODUCT, __version__
from proxy.archive.cache.cache import CacheError, cache_owner, purge_storage
from proxy.archive.errors import ArchiveError
from proxy.archive.peers.archive import Archive
from proxy.archive.peers.tls import TlsSettingsError, check_tls
from proxy.cert import WriteError, add_cert_command
from proxy.config.errors import ConfigError
from proxy.config.reading import find_config, load_config
from proxy.config.schema import Config, Peer
from proxy.dicomweb.uids import is_valid_uid
from proxy.forward.errors import UpstreamSettingsError
from proxy.forward.settings import check_settings
from proxy.forward.upstream import Upstream
from proxy.logs import set_up_logging
from proxy.security.audit.trail import AuditError, check_audit
from proxy.security.auth.errors import AuthSettingsError, MissingLibraryError
from proxy.security.auth.hashing import hash_password, new_token, token_hash
from proxy.security.auth.middleware import check_access_settings
from proxy.security.tls.certificates import CertificateError
from proxy.security.tls.https import check_https, now
from proxy.service import StartError, check_supported, serve_until_stopped

_Result = TypeVar("_Result")

EXIT_OK: Final = 0
EXIT_NO_ANSWER: Final = 1
EXIT_BAD_CONFIG: Final = 2
EXIT_CANNOT_START: Final = 3


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (
        ConfigError,
        TlsSettingsError,
        CertificateError,
        UpstreamSettingsError,
        AuthSettingsError,
        AuditError,
    ) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_CONFIG
    except (StartError, CacheError, WriteError, MissingLibraryError) as error:
        print(error, file=sys.stderr)
        return EXIT_CANNOT_START
    except KeyboardInterrupt:
        return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    prog = "python -m proxy" if Path(sys.argv[0]).name == "__main__.py" else None  # else the name of the script
    parser = argparse.ArgumentParser(prog=prog, description="DICOMweb in front of a DIMSE archive")
    parser.add_argument("--version", action="version", version=f"{PRODUCT} {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    with_config = argparse.ArgumentParser(add_help=False)
    with_config.add_argument("--config", type=Path, metavar="FILE", help="the configuration file")

    run = commands.add_parser("run", parents=[with_config], help="run the proxy until SIGTERM or Ctrl-C")
    run.set_defaults(command=_run)
    check = commands.add_parser("check-config", parents=[with_config], help="check the configuration and say all")
    check.set_defaults(command=_check_config)
    echo = commands.add_parser(
        "echo", parents=[with_config], help="ask whether what is behind answers: archives by C-ECHO"
    )
    echo.set_defaults(command=_echo)
    purge = commands.add_parser("purge", parents=[with_config], help="empty the cache, also while the proxy runs")
    purge.add_argument("--study", type=_uid, nargs="+", metavar="UID", help="only these Study Instance UIDs")
    purge.set_defaults(command=_purge)
    hashing = commands.add_parser("hash-password", help="make the hash of a password, for auth.users")
    hashing.set_defaults(command=_hash_password)
    token = commands.add_parser("make-token", help="make a token for a program, and its hash for auth.tokens")
    token.set_defaults(command=_make_token)
    add_cert_command(commands, with_config, _load, print)
    demo = commands.add_parser("demo", help="run with an embedded archive of sample images")
    demo.add_argument("--port", type=int, default=3006, help="the HTTP port (default 3006; 0 for any free one)")
    demo.add_argument("--folder", type=Path, help="DICOM files to show in place of the samples")
    demo.set_defaults(command=_demo)
    return parser


def _uid(text: str) -> str:
    if not is_valid_uid(text):
        raise argparse.ArgumentTypeError("not a UID")
    return text


def _load(options: argparse.Namespace) -> Config:
    path = find_config(options.config, cwd=Path.cwd())
    config = load_config(path)
    for warning in config.warnings:
        print(f"{path}: warning: {warning}", file=sys.stderr)
    check_supported(config)
    return config


def _load_checked(options: argparse.Namespace) -> Config:
    """The same, with a look at the files that it names."""
    config = _load(options)
    if config.proxy_mode == "dicomweb" and config.dicomweb is not None:
        check_settings(config.dicomweb)
    elif config.dimse is not None:
        check_tls(config.dimse)
    check_access_settings(config)
    check_audit(config.audit)
    return config


def _run(options: argparse.Namespace) -> int:
    config = _load_checked(options)
    try:
        set_up_logging(config.log_level, config.log_dir)
    except OSError as error:
        raise StartError(f"cannot write the log (key: logDir) at {error.filename}: {error.strerror}") from error
    run_loop(serve_until_stopped(config))
    return EXIT_OK


def _check_config(options: argparse.Namespace) -> int:
    config = _load_checked(options)
    for doubt in check_https(config, now()):
        print(f"warning: {doubt}", file=sys.stderr)
    print(f"the configuration is valid: {config.proxy_mode} mode, {_what_is_behind(config)}")
    return EXIT_OK


def _what_is_behind(config: Config) -> str:
    if config.proxy_mode == "dicomweb":
        assert config.dicomweb is not None
        search, rest = config.dicomweb.qido_forwarding_url, config.dicomweb.wado_forwarding_url
        return f"forwards to {rest}" if search == rest else f"forwards searches to {search}, all else to {rest}"
    assert config.dimse is not None
    count = len(config.dimse.peers)
    return f"{count} archive{'' if count == 1 else 's'}"


def _echo(options: argparse.Namespace) -> int:
    config = _load_checked(options)
    logging.getLogger().addHandler(logging.NullHandler())  # what would be logged is printed below
    if config.proxy_mode == "dicomweb":
        outcomes = run_loop(_ask_upstream(config))
    else:
        assert config.dimse is not None
        outcomes = run_loop(_echo_all(config.dimse.peers))
    for _, line in outcomes:
        print(line)
    return EXIT_OK if all(answers for answers, _ in outcomes) else EXIT_NO_ANSWER


async def _echo_all(peers: Iterable[Peer]) -> list[tuple[bool, str]]:
    return await asyncio.gather(*(_echo_one(Archive(peer)) for peer in peers))


async def _ask_upstream(config: Config) -> list[tuple[bool, str]]:
    upstream = Upstream(config)
    await upstream.start()
    try:
        await upstream.check()
    finally:
        await upstream.close()
    return [(each.is_up, f"{each.base}: {'answers' if each.is_up else each.last_error}") for each in upstream.healths]


async def _echo_one(archive: Archive) -> tuple[bool, str]:
    """Whether it answers, and what to say of it."""
    try:
        seconds = await archive.echo()
    except ArchiveError as error:
        return False, str(error)
    return True, f"{archive.name}: answers in {seconds * 1000:.0f} ms"


def _purge(options: argparse.Namespace) -> int:
    folder = _load(options).storage_path
    owner = cache_owner(folder)
    if owner is None:
        print(f"there is no cache at {folder}")
        return EXIT_OK
    with _as_user(*owner):
        purged = [purge_storage(folder, study) for study in options.study or [None]]
    count, size = sum(each.instances for each in purged), sum(each.bytes for each in purged)
    print(f"removed from the cache at {folder}: {count} instance{'' if count == 1 else 's'}, {size} bytes")
    return EXIT_OK


@contextlib.contextmanager
def _as_user(user: int, group: int) -> Iterator[None]:
    """Where root runs the command, go on as the user whose files they are, who could not use files of root."""
    if os.geteuid() != 0:
        yield
        return
    own_user, own_group = os.geteuid(), os.getegid()
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(own_user)
        os.setegid(own_group)


def _hash_password(options: argparse.Namespace) -> int:
    """The password comes from the terminal, or as a line of standard input: never from the command line, which other
    users of the machine can see."""
    if sys.stdin.isatty():
        password = getpass.getpass("password: ")
        repeated = getpass.getpass("the same again: ")
    else:
        password = repeated = sys.stdin.readline().rstrip("\r\n")
    try:
        if password != repeated:
            raise ValueError("these are two different passwords")
        print(hash_password(password))
    except ValueError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_CONFIG
    return EXIT_OK


def _make_token(options: argparse.Namespace) -> int:
    token = new_token()
    print(f"token, for the program, shown only now: {token}")
    print(f"tokenHash, for the configuration:       {token_hash(token)}")
    return EXIT_OK


def _demo(options: argparse.Namespace) -> int:
    from proxy.demo.run import run_demo

    set_up_logging()
    run_loop(run_demo(options.port, options.folder))
    return EXIT_OK


def run_loop(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine on uvloop where it is installed, else on asyncio's own loop."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
