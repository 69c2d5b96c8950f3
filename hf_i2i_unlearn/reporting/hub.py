"""Pushing a finished folder to the Hub: access is checked before any work, network faults are retried, and what fails at last
ends with the command that tries again."""

import json
import logging
import shlex
import time
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

from ..errors import InputError
from .run_folder import CARD, EVALUATION_PAGE, OPTIONS

logger = logging.getLogger(__name__)


# Weights, configs, processor, code of a model that brings its own, tokenizers of a pipeline, card, pictures, options, figures.
PUSHED = ["*.safetensors", "*.json", "*.py", "*/*.txt", CARD, EVALUATION_PAGE, "*.png", OPTIONS]


NOT_PUSHED = ["checkpoint-*", "training_args.json"]


WAITS = (1, 4)  # seconds before the second and the third try; the client has more patience of its own


class PushError(Exception):
    """The folder is whole, but it did not reach the Hub. The message holds the command that tries again."""


def check_access(repo: str, private: bool | None = None, revision: str | None = None, token: str | None = None) -> str:
    """Make sure that a later push can succeed: token, namespace, repository (made if it is not there) and branch.

    Args:
        repo: "name" or "namespace/name". private, revision: as in `HfApi`. token: from the usual places if None.

    Returns:
        The full name of the repository.

    Raises:
        InputError: no token, one that is refused or may only read, somebody else's namespace, or no answer.
    """
    api = HfApi(token=token)
    try:
        me = _retried(api.whoami)
        allowed = {me["name"], *(org["name"] for org in me.get("orgs", []) if org.get("roleInOrg") != "read")}
        if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise InputError("The Hub token may only read; make one that may write: https://huggingface.co/settings/tokens.")
        if "/" in repo and repo.split("/")[0] not in allowed:
            raise InputError(
                f"The token of '{me['name']}' may not push to '{repo}'; "
                f"choose a --hub_model_id under {', '.join(sorted(allowed))}."
            )
        repo = _retried(lambda: api.create_repo(repo, private=private, exist_ok=True)).repo_id
        if revision not in (None, "main"):
            _retried(lambda: api.create_branch(repo, branch=revision, exist_ok=True))
        return repo
    except LocalTokenNotFoundError:
        raise InputError("There is no Hub token to push with; run 'hf auth login', or set HF_TOKEN or --hub_token.") from None
    except (HTTPError, OSError, ValueError) as error:
        raise InputError(f"Pushing to '{repo}' is not possible, so nothing was started: {_reason(error)}") from error


def push(folder, repo: str, private: bool | None = None, revision: str | None = None, token: str | None = None) -> str:
    """Upload a finished folder, `PUSHED` but not `NOT_PUSHED`, in one commit. Returns its address.

    Raises:
        PushError: it failed for good, or again and again.
    """
    api = HfApi(token=token)
    try:
        commit = _retried(
            lambda: api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                commit_message=f"Upload {Path(folder).resolve().name}",
                allow_patterns=PUSHED,
                ignore_patterns=NOT_PUSHED,
            )
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise PushError(
            f"The push to '{repo}' failed ({_reason(error)}), but '{folder}' is complete. To try again:\n"
            f"{retry_command(folder, repo, private, revision)}"
        ) from error
    return str(commit.commit_url)


def retry_command(folder, repo: str, private: bool | None = None, revision: str | None = None) -> str:
    """The command line of the Hub's own client that uploads what `push` does. It holds no token."""
    words = ["hf", "upload", repo, str(folder), "."]
    words += [w for pattern in PUSHED for w in ("--include", pattern)] + [w for p in NOT_PUSHED for w in ("--exclude", p)]
    return shlex.join(words + (["--private"] if private else []) + (["--revision", revision] if revision else []))


def _retried(call):
    """The result of `call`, which is tried again after faults that may pass: no connection, or a server in trouble."""
    for wait in (*WAITS, None):
        try:
            return call()
        except (HTTPError, json.JSONDecodeError) as error:  # no JSON: an error page from something before the Hub
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else 500
            if wait is None or (status < 500 and status not in (408, 429)):
                raise
            logger.warning("The Hub did not answer as it should (%s); trying again in %s s.", _reason(error), wait)
            time.sleep(wait)


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    said = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    return f"{f'{status}: ' if status else ''}{' '.join(said.split())}"[:300]
