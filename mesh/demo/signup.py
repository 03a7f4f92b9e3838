"""The demo's service: users sign up; also two consumers that would write to each other for ever, if their budget did
not end.

The workflow is one a team could have written: it knows a database and a mail server by their addresses, and nothing
of how it is run.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import unicodedata
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from bitactor import Backoff, Context, Result, Signal, Workflow, consumer
from mesh.demo.users import EmailTaken, Users

USERS: Final = "DEMO_USERS"
"""Name of the environment variable with the file of the users table."""
MAIL: Final = "DEMO_MAIL"
"""Name of the environment variable with the mail server's address."""
SCREENING_TIMEOUT: Final = 2.5


class MailRefused(Exception):
    """The mail server did not take the letter."""


class NotAName(Exception):
    """The name has digits or brackets."""


class SignUp(BaseModel):
    """What the form sends."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    name: str = Field(min_length=1, max_length=200)
    email: str = Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s.]+$", max_length=254)
    country: str = Field(pattern=r"^[A-Z]{2}$")


signup = Workflow(
    "users.signup", input=SignUp, ttl=8, deadline=30.0, grace=0.2, errors=[EmailTaken, MailRefused, NotAName]
)


@signup.step
async def decode(name: str, email: str, country: str) -> dict[str, str]:
    """One spelling for what can be written in several ways."""
    user, _, domain = email.rpartition("@")
    address = f"{user}@{domain.encode('idna').decode()}".lower()
    return {"name": unicodedata.normalize("NFC", " ".join(name.split())), "email": address, "country": country}


@signup.step(spawn="process", timeout=SCREENING_TIMEOUT)
def screen(decode: dict[str, str]) -> None:
    """Is it a name?  A careless regular expression: on an unlucky one it runs for ever, and only killing its process
    helps."""
    if re.fullmatch(r"([^\d<>()]+[ .'’,-]*)+", decode["name"]) is None:
        raise NotAName(decode["name"])


@signup.step(after=["screen"])
def check_duplicate(decode: dict[str, str]) -> str:
    """A polite answer for most; two at once are told apart by the table itself."""
    _users().refuse_taken(decode["email"])
    return decode["email"]


@signup.step(bind={"row": Result(decode)}, after=["check_duplicate"])
def create_user(row: dict[str, str], ctx: Context) -> dict[str, Any]:
    """Inserts once, however often it is delivered."""
    return {"id": _users().insert(ctx.idempotency_key, row), **row}


@create_user.undo(in_doubt=True)
def delete_user(ctx: Context) -> None:
    """Takes the user back, by the key that it was inserted with."""
    _users().delete(ctx.forward_key)


@signup.step(
    bind={"user": Result(create_user)}, retries=2, backoff=Backoff(initial=0.05, factor=2, cap=0.5), timeout=5.0
)
def welcome(user: dict[str, Any], ctx: Context) -> str:
    """A letter; the mail server knows by the key which one it had already."""
    return _send_mail(user["email"], f"Welcome, {user['name']}!", ctx.idempotency_key)


echo = Workflow("demo.echo", input={"text": str}, ttl=8)


@echo.step
async def shout(text: str, ctx: Context) -> str:
    """Begins what nobody ends."""
    await ctx.emit("echo.ping", text)
    return text


@consumer("echo.ping", group="ping")
async def ping(signal: Signal, ctx: Context) -> None:
    """Answers every ping with a pong …"""
    await ctx.emit("echo.pong", signal.token)


@consumer("echo.pong", group="pong")
async def pong(signal: Signal, ctx: Context) -> None:
    """… and every pong with a ping."""
    await ctx.emit("echo.ping", signal.token)


warm_up = Workflow("demo.warm_up", input={})


@warm_up.step(spawn="process")
def wake() -> None:
    """Takes long enough that several at once need several worker processes; those are started when first needed."""
    time.sleep(0.2)


service = [signup, echo, warm_up, ping, pong]


def _users() -> Users:
    return Users(os.environ[USERS])


def _send_mail(to: str, subject: str, key: str) -> str:
    server = urlsplit(os.environ[MAIL])
    connection = http.client.HTTPConnection(server.hostname or "", server.port, timeout=4.0)
    try:
        connection.request("POST", "/letters", json.dumps({"to": to, "subject": subject}), {"Idempotency-Key": key})
        response = connection.getresponse()
        answer = response.read().decode()
    finally:
        connection.close()
    if response.status != 202:
        raise MailRefused(f"{response.status} {answer}")
    return answer
