"""HTTP to a served model: its address, its key, deadlines, and which failures are worth another try."""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from rlad.errors import RladError

CONNECT_SECONDS = 10.0
LONGEST_BACKOFF = 30.0
KEEP_ALIVE_SECONDS = 4.0  # vLLM closes an idle connection after 5: ours go first, so that none is cut as it is used
PASSING = frozenset({408, 425, 429})  # and every 5xx
LONGEST_MESSAGE = 400

T = TypeVar("T")


class GaveUp(Exception):
    """A failure that could have passed and did not. The message says what happened and how often it was tried."""


class Refused(Exception):
    """An HTTP status that another try would not change. The message is the server's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status


@dataclass(frozen=True)
class Patience:
    """timeout: seconds for one try, connecting and reading included. retries: tries after the first. backoff: the
    first wait in seconds; each next one is twice as long, up to LONGEST_BACKOFF.

    No try starts later than `timeout * (retries + 1)` seconds after the first.
    """

    timeout: float
    retries: int
    backoff: float


def checked_url(url: str) -> str:
    """`url` without a / or /v1 at its end. Raises RladError, which repeats no password, where it cannot be used."""
    if "@" in url:
        raise RladError(
            "a teacher's URL holds no user and password, which would end up in recipes and logs: put the key in an "
            "environment variable and name that in api_key_env"
        )
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(character.isspace() or not character.isprintable() for character in url):
        raise RladError(f"a teacher's URL is written http://host:port, not {url!r}")
    if parts.query or parts.fragment:
        raise RladError("a teacher's URL ends with its port or a path, without ? and #: a key goes in api_key_env")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def read_key(variable: str | None) -> str | None:
    """The key in that environment variable; None for no variable. Raises RladError, without the key, for a bad one."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RladError(f"api_key_env: the environment variable {variable} is not set: export it, or leave this out")
    if not (key.isascii() and key.isprintable()):
        raise RladError(f"api_key_env: {variable} holds characters that cannot be sent in a header")
    return key


def make_client(key: str | None, connections: int) -> httpx2.AsyncClient:
    """A client that keeps connections alive. Only connecting has a deadline of its own; a whole try has Patience's."""
    return httpx2.AsyncClient(
        headers={} if key is None else {"Authorization": f"Bearer {key}"},
        timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
        limits=httpx2.Limits(
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=KEEP_ALIVE_SECONDS,
        ),
    )


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop in its own thread: connections stay open between calls, and a notebook's loop is no obstacle."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rlad-teacher", daemon=True).start()
    return loop


def close_with(owner: object, client: httpx2.AsyncClient) -> None:
    """Close the client's connections when its owner is gone."""
    weakref.finalize(owner, lambda: asyncio.run_coroutine_threadsafe(client.aclose(), _loop())).atexit = False


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from ordinary code. Ctrl-C cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def request_json(
    client: httpx2.AsyncClient,
    url: str,
    body: Mapping[str, Any] | None,
    patience: Patience,
    wanted: Callable[[], bool] = lambda: True,
) -> Any:
    """The JSON that answers a POST of `body`, or a GET where it is None.

    Tries again after a failed connection, a deadline, an answer that is cut short, and HTTP 408, 425, 429 and 5xx;
    waits as long as Retry-After says where there is one. wanted: when it turns false no other try is made.

    Raises GaveUp when the tries are used up, Refused for any other HTTP status.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + patience.timeout * (patience.retries + 1)
    tries = 0
    while True:
        happened, asked_wait = await _try(client, url, body, patience.timeout)
        if isinstance(happened, _Answer):
            return happened.value
        tries += 1
        wait = backoff(patience.backoff, tries) if asked_wait is None else asked_wait
        if tries > patience.retries or clock() + wait >= deadline or not wanted():
            raise GaveUp(f"{happened} ({tries} {'try' if tries == 1 else 'tries'})")
        await asyncio.sleep(wait)


@dataclass(frozen=True)
class _Answer:
    value: Any


async def _try(
    client: httpx2.AsyncClient, url: str, body: Mapping[str, Any] | None, timeout: float
) -> tuple[_Answer | str, float | None]:
    """The answer, or what happened and how long the server asks to wait. Raises Refused."""
    try:
        async with asyncio.timeout(timeout):
            response = await (client.get(url) if body is None else client.post(url, json=body))
    except TimeoutError:
        return f"no whole answer within {timeout:g} s", None
    except httpx2.RequestError as error:
        return _described(error), None
    if response.is_success:
        try:
            return _Answer(json.loads(response.content)), None  # Python's reader takes NaN, which is not JSON
        except (ValueError, RecursionError):
            return "an answer that is cut short or is not JSON", None
    message = _message(response, client.headers.get("Authorization"))
    if response.status_code in PASSING or response.status_code >= 500:
        seconds = retry_after(response.headers.get("Retry-After"))
        asks = "" if seconds is None else f", and asks to wait {seconds:.0f} s"
        return f"HTTP {response.status_code}: {message}{asks}", seconds
    raise Refused(response.status_code, message)


def backoff(base: float, tries: int) -> float:
    """Seconds to wait after so many failed tries: twice as long each time, and between half of that and all of it.

    The draw is from a generator of its own: the global one belongs to the training, which must resume to the bit.
    """
    return min(LONGEST_BACKOFF, base * 2.0 ** (tries - 1)) * _JITTER.uniform(0.5, 1.0)


_JITTER = random.Random()


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date; None where it says nothing."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _described(error: httpx2.RequestError) -> str:
    if isinstance(error, httpx2.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, httpx2.ConnectError):
        return f"cannot connect ({error})"
    return f"the connection broke ({' '.join(str(error).split()) or type(error).__name__})"


def _message(response: httpx2.Response, authorization: str | None) -> str:
    """What the server says went wrong, on one line. A key that it repeats is taken out."""
    try:
        said = json.loads(response.content)
        said = said.get("error", said)
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, RecursionError, AttributeError):
        said = response.text
    text = " ".join(str(said).split())
    if authorization is not None:
        text = text.replace(authorization.removeprefix("Bearer "), "***")
    return text[:LONGEST_MESSAGE] or response.reason_phrase
