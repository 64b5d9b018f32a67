"""A judge behind an address that speaks OpenAI's chat completions."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry

from eval.llm_judge.verdicts import Verdict, parsed
from unlearn.errors import UserError, shortened

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"[!-~]+")  # what a header can carry
_RETRIED = (408, 409, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
_OWN_KEYS = ("messages", "model", "stream")


class EndpointError(UserError):
    """The address gives no verdicts; the message names it, the variable of its key, and what to do."""


@dataclass(frozen=True)
class Endpoint:
    """Ask a model at `url`, one prompt a call, at temperature 0.

    - `url`: up to the version: `https://host/v1`.
    - `model`: its name there.
    - `key_variable`: the environment variable with the key; None sends none. The key is read for each call,
      kept nowhere, and replaced in what the server says.
    - `body`: further keys of a request; null removes one of `temperature` and `max_tokens`.
    - `reply_tokens`: longest reply.
    - `timeout`: seconds to wait for a connection, and for a reply.
    - `retries`: further tries of a call after a lost connection, 429 or a server's error; the waits double
      from `backoff` seconds on, up to a minute, or are as long as the server asks.
    - `concurrency`: calls at a time.
    """

    url: str
    model: str
    key_variable: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    reply_tokens: int = 8
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 1.0
    concurrency: int = 4
    _local: threading.local = field(default_factory=threading.local, init=False, repr=False, compare=False)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"url": self.url.rstrip("/"), "request": self._request("")}

    def __call__(self, prompt: str) -> Verdict:
        address = f"{self.url.rstrip('/')}/chat/completions"
        try:
            answer = self._session().post(
                address, json=self._request(prompt), auth=_Bearer(self._key()), timeout=self.timeout,
                allow_redirects=False,
            )  # fmt: skip
        except requests.RequestException as error:
            raise self._failed(address, f"no reply ({type(error).__name__}: {error})") from None
        if answer.status_code != requests.codes.ok:
            raise self._failed(address, f"status {answer.status_code} ({answer.text})")
        try:
            reply = answer.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise self._failed(address, f"its reply is no chat completion ({answer.text})") from None
        text = self._hidden(reply) if isinstance(reply, str) else ""
        return Verdict(parsed(text), text)

    def _request(self, prompt: str) -> dict[str, Any]:
        request = {"temperature": 0, "max_tokens": self.reply_tokens, **self.body}
        messages = [{"role": "user", "content": prompt}]
        return {
            "model": self.model, "messages": messages, **{k: v for k, v in request.items() if v is not None}
        }  # fmt: skip

    def _session(self) -> requests.Session:
        """Return this thread's session: a session serves one thread at a time."""
        if not hasattr(self._local, "session"):
            session = requests.Session()
            retry = _Retry(
                total=self.retries, status_forcelist=_RETRIED, allowed_methods=("POST",),
                backoff_factor=self.backoff, backoff_max=_LONGEST_WAIT, raise_on_status=False,
            )  # fmt: skip
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=retry))
            self._local.session = session
        session = self._local.session
        assert isinstance(session, requests.Session)
        return session

    def _key(self) -> str | None:
        return None if self.key_variable is None else os.environ.get(self.key_variable, "").strip()

    def _hidden(self, text: str) -> str:
        key = self._key()
        return text.replace(key, f"[{self.key_variable}]") if key else text

    def _failed(self, address: str, why: str) -> EndpointError:
        key = "no key" if self.key_variable is None else f"the key of the variable {self.key_variable}"
        return EndpointError(
            f"{address}: {shortened(self._hidden(' '.join(why.split())), 400)}; asked for the model "
            f"{self.model} with {key}. Verdicts so far are on disk: start again to continue"
        )


class _Bearer(AuthBase):
    """The header with the key; also without one, so that no login of a .netrc is sent."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class _Retry(Retry):
    """Wait as long as the server asks, but no longer than other waits: other processes wait too."""

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, _LONGEST_WAIT)


def problems(url: str, key_variable: str | None, body: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with an address and its key, each `option=value: why`; no value of a key."""
    found = []
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        found.append(f"url={_without_login(url)}: give an address as https://host/v1")
    elif parts.username or parts.password or parts.query:
        found.append(
            f"url={_without_login(url)}: a login or a query would be written to files; put the key in an "
            "environment variable, named by key_variable"
        )
    if key_variable is not None and not _VARIABLE.fullmatch(key_variable):
        found.append(
            "key_variable: it is no name of an environment variable; name the variable that holds the key, "
            "not the key itself"
        )
    elif key_variable is not None and not _KEY.fullmatch(os.environ.get(key_variable, "").strip()):
        state = "has characters that no key has" if os.environ.get(key_variable, "").strip() else "is not set"
        found.append(
            f"key_variable={key_variable}: this environment variable {state}; export it, or set "
            "key_variable=null for an address without a key"
        )
    found += [f"body.{key}: it is set by the benchmark; leave it out" for key in _OWN_KEYS if key in body]
    return found


def _without_login(url: str) -> str:
    head = url.partition("?")[0]
    return re.sub(r"//[^/]*@", "//…@", head)
