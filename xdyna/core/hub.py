"""The published weight files: where they are, what they are for, which are here, and fetching them.

The table is data (`pretrained/registry.yaml`). `fetch` downloads one file over huggingface_hub, from the Hub or from an
address that the table names: it goes on where an
earlier try stopped, checks size and hash, and gives the file its name only when every byte is right.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
)

from xdyna.core.errors import DownloadError, WeightsError
from xdyna.core.files import SPARE_BYTES, file_sha256
from xdyna.core.resources import resource

REGISTRY = resource("pretrained", "registry.yaml")
USES = ("animate", "train")

# What the client raises besides its own errors depends on the HTTP library beneath it, which changed over its versions.
NETWORK_ERRORS: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError)


@dataclass(frozen=True)
class HubFile:
    """One published file.

    Attributes:
        repo: "owner/name" on the Hub; of a file elsewhere, "host/name".
        path: name inside the repository.
        purpose: what it is.
        uses: what it is needed for: "animate", "train".
        license: of the file.
        size: in bytes, or None where it is not known.
        sha256: 64 hexadecimal digits, or None where it is not known.
        revision: branch, tag or commit.
        base: address of the folder that holds the file, if that is not on the Hub; size and hash are then known.
    """

    repo: str
    path: str
    purpose: str
    uses: tuple[str, ...]
    license: str
    size: int | None = None
    sha256: str | None = None
    revision: str = "main"
    base: str | None = None

    @property
    def name(self) -> str:
        """Short unique name, which is also its place below the download folder: "repository/path"."""
        return f"{self.repo.rpartition('/')[2]}/{self.path}"

    def target(self, folder: Path) -> Path:
        """Where the file lies below a download folder."""
        return folder / self.name

    def url(self, endpoint: str | None = None) -> str:
        """Address for a download by hand."""
        if self.base is not None:
            return f"{self.base}/{self.path}"
        return hf_hub_url(self.repo, self.path, revision=self.revision, endpoint=endpoint)


@dataclass(frozen=True)
class Plan:
    """Which files are here and which are not.

    Attributes:
        present: files that are here (in the expected size, where that is known).
        missing: files that are not.
        wrong: files that are here in another size: interrupted or replaced.
        known_bytes: total size of `missing` and `wrong`, as far as known.
        unknown: how many of those have no known size.
    """

    present: tuple[HubFile, ...]
    missing: tuple[HubFile, ...]
    wrong: tuple[HubFile, ...]
    known_bytes: int
    unknown: int

    def summary(self) -> str:
        """One line for people."""
        text = f"{len(self.present)} files present, {len(self.missing)} missing"
        if self.wrong:
            text += f", {len(self.wrong)} of a wrong size ({', '.join(file.name for file in self.wrong)})"
        if self.missing or self.wrong:
            text += f"; to download: {self.known_bytes / 1e9:.2f} GB"
            text += f" and {self.unknown} files of unknown size" if self.unknown else ""
        return text


def load_registry(path: Path = REGISTRY) -> dict[str, HubFile]:
    """The table of published files.

    Args:
        path: a YAML file in the form of pretrained/registry.yaml.

    Returns:
        dict[str, HubFile]: by `HubFile.name`.

    Raises:
        WeightsError: the table is missing or malformed.
    """
    try:
        groups = yaml.safe_load(path.read_text(encoding="utf-8"))["repositories"]
        files = [
            HubFile(
                repo=group["repo"],
                license=group["license"],
                revision=group.get("revision", "main"),
                base=group.get("base"),
                uses=tuple(entry.pop("uses")),
                **entry,
            )
            for group in groups
            for entry in group["files"]
        ]
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist; run from a source checkout, which holds the table") from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is not a table of files: {type(error).__name__}: {error}") from error
    for file in files:
        bad_hash = file.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        if bad_hash or not set(file.uses) <= set(USES) or ".." in Path(file.path).parts:
            raise WeightsError(f"{path}: {file.name} has a malformed sha256, use or path")
        if file.base is not None and (file.size is None or file.sha256 is None):
            raise WeightsError(f"{path}: {file.name} is not on the Hub; expected its size and sha256")
    return {file.name: file for file in files}


def plan(folder: str | os.PathLike[str], files: Iterable[HubFile]) -> Plan:
    """See which files are in a download folder. Looks at sizes, not at contents.

    Args:
        folder: the download folder.
        files: which ones; usually values of `load_registry()`.

    Returns:
        Plan: what is here, what is missing, how much there is to download.
    """
    sorted_in: dict[str, list[HubFile]] = {"present": [], "missing": [], "wrong": []}
    for file in files:
        path = file.target(Path(folder))
        if not path.is_file():
            sorted_in["missing"].append(file)
        elif file.size is not None and path.stat().st_size != file.size:
            sorted_in["wrong"].append(file)
        else:
            sorted_in["present"].append(file)
    wanted = sorted_in["missing"] + sorted_in["wrong"]
    return Plan(
        **{kind: tuple(found) for kind, found in sorted_in.items()},
        known_bytes=sum(file.size or 0 for file in wanted),
        unknown=sum(file.size is None for file in wanted),
    )


def missing(folder: str | os.PathLike[str], *, use: str = "animate") -> list[HubFile]:
    """The published files needed for `use` ("animate" or "train") that are not in a download folder."""
    found = plan(folder, (file for file in load_registry().values() if use in file.uses))
    return [*found.missing, *found.wrong]


def fetch(
    file: HubFile,
    folder: str | os.PathLike[str],
    *,
    endpoint: str | None = None,
    token: str | None = None,
    progress: bool = True,
) -> Path:
    """Download one file, or check the one that is there. An interrupted download goes on where it stopped.

    The file appears under its name only after its size and hash were checked: against the table, and where that knows
    no hash against the one that the server announces.

    Args:
        file: what to fetch.
        folder: download folder; the file goes to `file.target(folder)`.
        endpoint: address of the Hub or of a mirror; None for the default (HF_ENDPOINT).
        token: access token; None takes the one of `hf auth login` or HF_TOKEN, if any.
        progress: show a progress bar.

    Returns:
        Path: the complete file.

    Raises:
        DownloadError: offline, no such file, no access, disk too full, or wrong bytes; with the address for a download
            by hand.
    """
    target = file.target(Path(folder))
    by_hand = f"Or download {file.url(endpoint)} by hand and save it as {target}"
    if target.exists():
        problem = _content_problem(target, size=file.size, digest=file.sha256)
        if problem:
            raise DownloadError(f"{target} {problem}; remove it and fetch it again. {by_hand}")
        return target
    with _explained(file, by_hand):
        offered = _look_up(file, endpoint, token)
    digest, size = file.sha256 or _hash_of_etag(offered.etag), file.size or offered.size
    for known, given, what in (
        (file.size, offered.size, "bytes"),
        (file.sha256, _sha256_of_etag(offered.etag), "hash"),
    ):
        if known is not None and given is not None and known != given:
            raise DownloadError(
                f"the server offers another {file.name} than the table expects ({what} {given}, expected {known}): it "
                f"was replaced. Nothing was downloaded; see whether pretrained/registry.yaml is up to date. {by_hand}"
            )
    partial = _partial_file(target, offered.etag)
    _check_space(partial, size, file)
    with _explained(file, by_hand), _progress_bars(progress), partial.open("ab") as handle:
        headers = build_hf_headers(token=token if file.base is None else False)
        http_get(offered.url, handle, resume_size=handle.tell(), headers=headers, expected_size=size)
        handle.flush()
        os.fsync(handle.fileno())
    problem = _content_problem(partial, size=size, digest=digest)
    if problem:
        partial.unlink()
        raise DownloadError(f"the download of {file.name} {problem}; it was removed. Try again. {by_hand}")
    os.replace(partial, target)
    return target


class _Offer(NamedTuple):
    """What a server has: the address, the version's tag and the size in bytes."""

    url: str
    etag: str | None
    size: int | None


def _look_up(file: HubFile, endpoint: str | None, token: str | None) -> _Offer:
    """Address and version. A file that is not at its place is looked for by its name in the whole repository."""
    if file.base is not None:
        return _Offer(file.url(), file.sha256, file.size)

    def offer(path: str) -> _Offer:
        url = hf_hub_url(file.repo, path, revision=file.revision, endpoint=endpoint)
        found = get_hf_file_metadata(url, token=token, endpoint=endpoint)
        return _Offer(url, found.etag, found.size)

    try:
        return offer(file.path)
    except EntryNotFoundError:
        listed = HfApi(endpoint=endpoint, token=token).list_repo_files(file.repo, revision=file.revision)
        elsewhere = [path for path in listed if Path(path).name == Path(file.path).name]
        if len(elsewhere) != 1:
            raise
        return offer(elsewhere[0])


@contextlib.contextmanager
def _explained(file: HubFile, by_hand: str) -> Iterator[None]:
    """Turn what the client raises into one message."""
    try:
        yield
    except GatedRepoError as error:
        raise DownloadError(
            f"{file.repo} asks for its license to be accepted: log in on its website and accept it, then run "
            f"`hf auth login` or set HF_TOKEN. {by_hand}"
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"{file.repo} does not exist or is not open to you; if it needs an account run `hf auth login` or set "
            f"HF_TOKEN. {by_hand}"
        ) from error
    except EntryNotFoundError as error:
        raise DownloadError(f"{file.repo} has no file {file.path} (any more). {by_hand}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise DownloadError(
            f"the server answered with HTTP {status} for {file.name}; try again later. {by_hand}"
        ) from error
    except NETWORK_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DownloadError(
            f"{file.name} cannot be fetched ({reason}); check the network (HF_HUB_OFFLINE, proxy, HF_ENDPOINT) and the "
            f"folder's permissions, then run again: what was downloaded is kept. {by_hand}"
        ) from error


def _partial_file(target: Path, etag: str | None) -> Path:
    """The unfinished file of this very version; unfinished files of other versions are removed."""
    version = hashlib.sha256((etag or "").encode()).hexdigest()[:12]
    partial = target.with_name(f".{target.name}.{version}.incomplete")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for old in target.parent.glob(f".{target.name}.*.incomplete"):
            if old != partial:
                old.unlink()
    except OSError as error:
        raise DownloadError(
            f"{target.parent} cannot be written to ({error.strerror}); choose another folder"
        ) from error
    return partial


def _check_space(partial: Path, size: int | None, file: HubFile) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    if size is not None and done > size:
        partial.unlink()  # cannot be the beginning of this file
        done = 0
    free, needed = shutil.disk_usage(partial.parent).free, (size or 0) - done + SPARE_BYTES
    if free < needed:
        raise DownloadError(
            f"{file.name} needs {needed / 1e9:.2f} GB on the disk of {partial.parent}, {free / 1e9:.2f} GB are free; "
            "make room or choose another folder"
        )


def _content_problem(path: Path, *, size: int | None, digest: str | None) -> str | None:
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found} bytes, expected {size}"
    if digest is None:
        return None
    actual = file_sha256(path) if len(digest) == 64 else _git_hash(path)
    return None if actual == digest else f"has other bytes than expected (hash {actual}, expected {digest})"


def _sha256_of_etag(etag: str | None) -> str | None:
    """The SHA-256 that the Hub announces for large files."""
    return etag if etag and re.fullmatch(r"[0-9a-f]{64}", etag) else None


def _hash_of_etag(etag: str | None) -> str | None:
    """SHA-256 for large files, git's blob hash for small ones; None for anything else."""
    return etag if etag and re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", etag) else None


def _git_hash(path: Path) -> str:
    """Git's name for these bytes: SHA-1 of "blob LENGTH\\0" and the content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    restore: Callable[..., Any] = disable_progress_bars if are_progress_bars_disabled() else enable_progress_bars
    if not shown:
        disable_progress_bars()
    try:
        yield
    finally:
        if not shown:
            restore()
