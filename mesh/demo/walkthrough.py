"""The demo from start to end: four processes, a few hundred sign-ups, one killed worker, and what the journal says
about it."""

from __future__ import annotations

import asyncio
import csv
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitactor.errors import BitActorError, ConfigurationError
from bitactor.messages.pulse import Pulse
from mesh.demo.findings import Findings, read_findings
from mesh.demo.mail import MailServer
from mesh.demo.post import PostResult, post, post_all
from mesh.demo.processes import DemoProcess, DemoProcesses
from mesh.demo.signup import MAIL, USERS
from mesh.demo.users import Users
from mesh.stores import open_reader

CONNECTIONS: Final = 24
PROCESSES: Final = 2
"""Worker processes of each worker node."""
WARM_UPS: Final = 8
"""Warm-up transactions: twice as many as there are worker processes."""
SERVICE: Final = "mesh.demo.signup:service"
JOURNAL: Final = "pulses.db"
TABLE: Final = "users.db"
_SHORT: Final = 40
WORKERS: Final = ("worker-1", "worker-2")

SHIPPED: Final = Path(__file__).with_name("signups.csv")
FIELDS: Final = ("name", "email", "country")
UNLUCKY: Final = {
    "name": "Wolfeschlegelsteinhausenbergerdorff (Hubert)",
    "email": "hubert@example.org",
    "country": "US",
}
"""The demo's own row, with a name that the screening step never gets through."""

ProgressCallback = Callable[[str, int, int], None]
"""Called with what happens now, how many sign-ups are answered, and of how many."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one demo."""

    directory: Path
    findings: Findings
    pulses: Sequence[Pulse]
    """Pulses of the compensated transaction to look at."""
    seconds: float
    """Seconds that the demo took, start to end."""
    posting_seconds: float
    rate_before_kill: float
    """Sign-ups a second, from the first that was completed until the kill."""

    @property
    def store(self) -> str:
        """The journal's URL."""
        return f"sqlite:///{self.directory / JOURNAL}"


class Walkthrough:
    """One run of the demo.

    Args:
        rows: the sign-ups; one of the demo's own is put among them.
        keep: where journal and users table are kept; by default a directory of their own below the system's temporary
            one.
        otlp: collector for the spans of all processes.
        report: called with the progress.

    Raises:
        ConfigurationError: `keep` has a journal already.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, str | None]], *, keep: Path | None, otlp: str, report: ProgressCallback
    ) -> None:
        place = min(len(rows), 12)
        self._rows = [*rows[:place], UNLUCKY, *rows[place:]]
        if keep is not None and (keep / JOURNAL).exists():
            raise ConfigurationError(f"{keep / JOURNAL} exists already; name another directory, or remove it")
        self._keep = keep
        self._otlp = otlp
        self._progress = report
        self._answered = 0
        # When the first sign-up was completed, and how many had been answered then.
        self._first_completed: tuple[float, int] | None = None
        self._halfway = asyncio.Event()

    async def run(self) -> Outcome:
        """Run the demo; whatever happens, no process is left.

        Raises:
            BitActorError: a process did not come up, or the service went away.
        """
        began = time.monotonic()
        directory = self._keep if self._keep is not None else Path(tempfile.mkdtemp(prefix="bitactor-demo-"))
        directory.mkdir(parents=True, exist_ok=True)
        sockets = _socket_directory()
        try:
            return await self._run(directory.absolute(), sockets, began)
        except BaseException:
            if self._keep is None:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(sockets, ignore_errors=True)

    async def _run(self, directory: Path, sockets: Path, began: float) -> Outcome:
        users = Users(str(directory / TABLE))
        users.create()
        with MailServer() as mail:
            environment = {
                USERS: str(directory / TABLE),
                MAIL: mail.address,
                "BITACTOR_PROCESSES": str(PROCESSES),
                "BITACTOR_DRAIN": "1",
                "TMPDIR": str(sockets),
            }
            async with aclosing(DemoProcesses(sockets, environment)) as processes:
                self._report("starting a registry, a service and two workers")
                url, victim = await self._start(processes, directory, sockets)
                await self._warm_up(url)
                posting = time.monotonic()
                posted, rate_before_kill = await self._post(url, victim)
                posting_seconds = time.monotonic() - posting
                self._report("stopping")
            letters = len(mail.delivered)
        with open_reader(f"sqlite:///{directory / JOURNAL}") as reader:
            findings = read_findings(reader, posted, len(self._rows), users.count(), letters)
            pulses = reader.pulses(findings.compensated.row.transaction) if findings.compensated is not None else []
        return Outcome(directory, findings, pulses, time.monotonic() - began, posting_seconds, rate_before_kill)

    async def _start(self, processes: DemoProcesses, directory: Path, sockets: Path) -> tuple[str, DemoProcess]:
        """Start all processes; returns the ingress' address, and the worker that is to be killed."""
        endpoint = f"ipc://{sockets}/registry"
        joined = [
            "--registry",
            endpoint,
            "--store",
            f"sqlite:///{directory / JOURNAL}",
            *(["--otlp", self._otlp] if self._otlp else []),
        ]
        _, service, victim, _ = await asyncio.gather(
            processes.start("registry", ["registry", "serve", endpoint]),
            processes.start("service", ["run", SERVICE, *joined, "--no-host", "--http", "0"]),
            *(processes.start(name, ["run", SERVICE, *joined]) for name in WORKERS),
        )
        return service.ready["http"], victim

    async def _warm_up(self, url: str) -> None:
        """Have the worker processes started, which takes longer than a hop may, before anything is timed.

        Raises:
            BitActorError: a warm-up transaction does not complete.
        """
        woken = await asyncio.gather(*(post(url, "/stimuli/demo.warm_up", {}, f"warm-{n}") for n in range(WARM_UPS)))
        for status, content in woken:
            if status != 200:
                raise BitActorError(f"the worker processes could not be started: {content.get('detail', status)}")

    async def _post(self, url: str, victim: DemoProcess) -> tuple[list[PostResult], float]:
        self._report("signing up")
        killing = asyncio.create_task(self._kill_halfway(victim))
        try:
            status, echoed = await post(url, "/stimuli/demo.echo", {"text": "hello"}, "echo")
            if status != 200:
                raise BitActorError(f"the loop of signals could not begin: {echoed.get('detail', status)}")
            posted = await post_all(
                url, "/stimuli/users.signup", self._rows, connections=CONNECTIONS, key="row", answered=self._count
            )
            rate = await killing
        finally:
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
        return posted, rate

    async def _kill_halfway(self, victim: DemoProcess) -> float:
        """Kill `victim` half-way with SIGKILL, so that it takes no leave; returns how many sign-ups a second were
        answered until then."""
        await self._halfway.wait()
        victim.process.kill()
        self._report(f"killed {victim.name}, its hops move")
        since, already = self._first_completed or (0.0, self._answered)
        return (self._answered - already) / max(1e-3, time.monotonic() - since)

    def _count(self, posted: PostResult) -> None:
        self._answered += 1
        if posted.status == 200 and self._first_completed is None:
            self._first_completed = (time.monotonic(), self._answered)
        if self._answered * 2 >= len(self._rows):
            self._halfway.set()
        self._report("")

    def _report(self, what: str) -> None:
        with suppress(BrokenPipeError):
            self._progress(what, self._answered, len(self._rows))


def read_rows(file: Path, limit: int | None = None) -> list[Mapping[str, str | None]]:
    """The rows as what is posted, whatever is wrong with them; a field that a row lacks is None.

    Raises:
        ConfigurationError: the file cannot be read, is not UTF-8, or has other columns.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            missing = [field for field in FIELDS if field not in (reader.fieldnames or ())]
            if missing:
                raise ConfigurationError(
                    f"{file} has no column {', '.join(missing)}: its first line is to name {', '.join(FIELDS)}, with "
                    "commas between"
                )
            rows = [{field: row[field] for field in FIELDS} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"cannot read {file} as UTF-8 CSV: {error}") from None
    if not rows:
        raise ConfigurationError(f"{file} has no rows below its first line")
    return list(rows[:limit])


def _socket_directory() -> Path:
    """A directory for sockets with a short name, because those of sockets are limited to some hundred bytes, and every
    process makes its own below it."""
    made = Path(tempfile.mkdtemp(prefix="ba-"))
    if len(str(made)) <= _SHORT:
        return made
    made.rmdir()
    return Path(tempfile.mkdtemp(prefix="ba-", dir="/tmp"))
