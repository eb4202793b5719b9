"""Putting a pipeline folder on the Hugging Face hub, with its card: `xdyna push`.

Only complete folders with a card and a `conditions.json` go, and only files that are safe to load; no model is replaced
by mistake, and nothing becomes public unless that was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from xdyna.checkpoints.files import check_folder
from xdyna.config.contract import FILE as CONDITIONS
from xdyna.config.contract import read_contract
from xdyna.core.errors import UsageError, WeightsError
from xdyna.core.hub import NETWORK_ERRORS

CARD = "README.md"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# Formats that run code when they are read, by the wrong reader at least.
UNSAFE = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
HOW_TO_LOG_IN = "run `hf auth login` or set HF_TOKEN to a token that may write"


class PushError(WeightsError):
    """A folder could not be put on the hub; says what was reached and how to go on."""


@dataclass(frozen=True)
class Upload:
    """What would go where.

    Attributes:
        folder: of the pipeline.
        repo: "owner/name".
        files: size in bytes by path inside the folder, in order.
    """

    folder: Path
    repo: str
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(self.files.values())

    def describe(self) -> str:
        """Lines for people: every file with its size, and all of them."""
        lines = [f"{size / 1e6:10.2f} MB  {name}" for name, size in self.files.items()]
        return "\n".join([*lines, f"{self.bytes / 1e6:10.2f} MB  in {len(self.files)} files -> {self.repo}"])


def plan_upload(folder: Path, repo: str) -> Upload:
    """See what would be uploaded, and that it may be.

    Args:
        folder: a pipeline folder.
        repo: "owner/name" on the hub.

    Raises:
        UsageError: no such folder, or a name that is none.
        WeightsError: an incomplete folder, one without a card or without conditions, or with files that do not belong
            into public.
    """
    if not REPOSITORY.fullmatch(repo):
        raise UsageError(f"{repo}: expected OWNER/NAME, a repository on the hub, such as me/xdyna-mine")
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected a pipeline folder with model_index.json")
    check_folder(folder)
    if not (folder / CONDITIONS).is_file():
        raise WeightsError(
            f"{folder} has no {CONDITIONS}, by which poses are drawn and the model is sampled; train or convert it "
            "with this release, or write it"
        )
    read_contract(folder)  # a damaged one is said here
    card = folder / CARD
    if not card.is_file() or not card.read_text(encoding="utf-8").strip():
        raise WeightsError(
            f"{folder} has no card ({CARD}); write one: what the model does, what it was trained on, its license, "
            "its limits"
        )
    files: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_dir():
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise WeightsError(
                f"{path} is a link to {path.resolve()}, outside of the folder; put the file itself there"
            )
        if path.suffix.lower() in UNSAFE:
            raise WeightsError(
                f"{path} can hold code that runs when it is read; expected safetensors: convert it (`xdyna convert "
                "--pipeline`) or remove it"
            )
        files[name] = path.stat().st_size
    return Upload(folder, repo, files)


def push(
    upload: Upload,
    *,
    public: bool = False,
    overwrite: bool = False,
    message: str = "Upload a pipeline of xdyna",
    endpoint: str | None = None,
    token: str | None = None,
    tell: Callable[[str], None] = print,
) -> str:
    """Make the repository and commit all files at once.

    Args:
        upload: from `plan_upload`.
        public: whether everybody may see it.
        overwrite: whether files may be replaced in a repository that is there already. Its history keeps the old ones;
            files that are not in the folder stay.
        message: of the commit.
        endpoint: address of the hub; None for the default (HF_ENDPOINT).
        token: None takes the one of `hf auth login` or HF_TOKEN.
        tell: hears what is done.

    Returns:
        Address of the commit.

    Raises:
        PushError: no access, no network, a repository that is there or that is public against the wish.
    """
    api = HfApi(endpoint=endpoint, token=token)
    try:
        if _make(api, upload.repo, public=public):
            tell(f"made {upload.repo} ({'public' if public else 'private'})")
        elif not overwrite:
            raise PushError(
                f"{upload.repo} is there already; choose another name, or give --overwrite to commit to it (its "
                "history keeps what is there)"
            )
        elif not public and not api.model_info(upload.repo).private:
            raise PushError(
                f"{upload.repo} is there already and public; give --public, make it private on its page, or choose "
                "another name"
            )
        done = api.upload_folder(
            repo_id=upload.repo,
            folder_path=upload.folder,
            allow_patterns=[_literal(name) for name in upload.files],
            commit_message=message,
        )
    except PushError:
        raise
    except HfHubHTTPError as error:
        raise _refused(error, upload.repo) from error
    except ValueError as error:  # of the card's metadata, or of an answer that is none
        reason = " ".join(str(error).split())
        raise PushError(
            f"the hub did not take the files ({reason}); mend that and run the same command again with --overwrite"
        ) from error
    except NETWORK_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PushError(
            f"{upload.repo} cannot be reached ({reason}); check the network (HF_HUB_OFFLINE, proxy, HF_ENDPOINT) and "
            "run the same command again, with --overwrite if the repository was made"
        ) from error
    return str(done.commit_url)


def _make(api: HfApi, repo: str, *, public: bool) -> bool:
    """Make the repository. Returns: False where it is there already."""
    try:
        api.create_repo(repo, private=not public, exist_ok=False)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 409:
            return False
        raise
    return True


def _refused(error: HfHubHTTPError, repo: str) -> PushError:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return PushError(
            f"the hub does not let you write to {repo} (HTTP {status}); {HOW_TO_LOG_IN}, or take a name of your own"
        )
    return PushError(
        f"the hub answered with HTTP {status} for {repo}; try again later, with --overwrite if it was made"
    )


def _literal(name: str) -> str:
    """A pattern of fnmatch that matches this name alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)
