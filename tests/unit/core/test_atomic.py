import argparse
import errno
import os
import re
import socket
from pathlib import Path

import pytest

from xdyna.core.atomic import atomic_output, check_output, output_path, prepare_output, write_file
from xdyna.core.errors import FileError
from xdyna.media import unique_path


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(params=["hard links", "no hard links"])
def links(request, monkeypatch):
    """Both kinds of file systems."""
    if request.param == "no hard links":

        def refused(*args, **kwargs):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refused)


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("others", [["out.mp4"], ["out.mp4", "out_2.mp4"]])
def test_a_file_that_appears_meanwhile_is_never_replaced(tmp_path, others):
    kept = tmp_path / f"out_{len(others) + 1}.mp4"
    message = rf"exists already: it appeared while.*kept as '{kept}'"
    with pytest.raises(FileError, match=message), atomic_output(tmp_path / "out.mp4") as temporary:  # noqa: PT012
        temporary.write_bytes(b"work of hours")
        for name in others:
            (tmp_path / name).write_bytes(b"precious")
    assert [(tmp_path / name).read_bytes() for name in others] == [b"precious"] * len(others)
    assert kept.read_bytes() == b"work of hours"
    assert names(tmp_path) == [*others, kept.name]


@pytest.mark.usefixtures("links")
def test_a_link_that_appears_meanwhile_is_never_replaced(tmp_path):
    with pytest.raises(FileError, match="kept as"), atomic_output(tmp_path / "out.mp4") as temporary:  # noqa: PT012
        temporary.write_bytes(b"work")
        (tmp_path / "out.mp4").symlink_to(tmp_path / "nowhere")
    assert (tmp_path / "out.mp4").is_symlink()
    assert (tmp_path / "out_2.mp4").read_bytes() == b"work"


@pytest.mark.usefixtures("links")
def test_publishing(tmp_path):
    path = tmp_path / "new" / "out.mp4"
    with atomic_output(path) as temporary:
        temporary.write_bytes(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert path.stat().st_nlink == 1
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_bytes(b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["out.mp4"]


def test_with_overwriting_a_file_that_appears_is_replaced(tmp_path):
    with atomic_output(tmp_path / "out.mp4", overwrite=True) as temporary:
        temporary.write_bytes(b"work")
        (tmp_path / "out.mp4").write_bytes(b"other")
    assert (tmp_path / "out.mp4").read_bytes() == b"work"


def test_an_error_of_the_disk_is_no_lack_of_links(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(FileError, match="is full"), atomic_output(tmp_path / "out.mp4") as temporary:
        temporary.write_bytes(b"work")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".", "/", "..", "a/.."])
def test_names_of_no_file(name):
    for refused in (lambda: prepare_output(name, overwrite=True), lambda: unique_path(name)):
        with pytest.raises(FileError, match=f"output '{name}' names no file; give a file name"):
            refused()


@pytest.mark.parametrize("letter", ["a", "\u00e4", "\u4eba"])
def test_long_names(tmp_path, letter):
    """The limit is 255 bytes, not characters; the longest name works, temporary and numbered names included."""
    width = len(letter.encode())
    longest = tmp_path / (letter * (251 // width) + "b" * (251 % width) + ".mp4")
    assert len(longest.name.encode()) == 255
    for _ in range(2):
        with atomic_output(longest, overwrite=True) as temporary:
            temporary.write_bytes(b"work")
    numbered = unique_path(longest)
    assert numbered.name.endswith("_2.mp4")
    with atomic_output(numbered) as temporary:
        temporary.write_bytes(b"work")
    assert unique_path(longest).name.endswith("_3.mp4")
    assert len(names(tmp_path)) == 2
    for path in (tmp_path / f"b{longest.name}", tmp_path / f"b{longest.name}" / "out.mp4"):
        for refused in (lambda path=path: prepare_output(path, overwrite=False), lambda path=path: unique_path(path)):
            with pytest.raises(FileError, match="has a name of 256 bytes; at most 255 are possible: choose a shorter"):
                refused()


def test_long_suffix(tmp_path):
    path = tmp_path / f"a.{'b' * 253}"
    with atomic_output(path) as temporary:
        temporary.write_bytes(b"work")
    with atomic_output(unique_path(path)) as temporary:
        temporary.write_bytes(b"work")
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_broken_link_as_target(tmp_path, overwrite):
    path = tmp_path / "out.mp4"
    path.symlink_to(tmp_path / "nowhere.mp4")
    with pytest.raises(FileError, match=r"is a broken link; it points to '.*nowhere.mp4', which does not exist"):
        prepare_output(path, overwrite=overwrite)
    assert names(tmp_path) == ["out.mp4"]


def test_zero_character():
    with pytest.raises(FileError, match="zero character"):
        prepare_output("a\0b.mp4", overwrite=False)


def special(folder, kind):
    """Something that is neither a plain file nor a folder."""
    path = folder / "special"
    if kind == "a device":
        return "/dev/null"
    if kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        os.mkfifo(path)
    return path


@pytest.mark.skipif(os.name == "nt", reason="no such files")
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["a device", "a pipe", "a socket"])
def test_what_is_no_plain_file_is_never_replaced(tmp_path, kind, linked):
    path = tmp_path / "link"
    path = special(tmp_path, kind) if not linked else path.symlink_to(special(tmp_path, kind)) or path
    before = os.lstat(path), names(tmp_path)
    message = re.escape(f"output '{path}' is {kind}, which would be replaced or left unused; give the name of a file")
    writers = [lambda: check_output(path)]
    if kind != "a device":  # if it fails, it must not cost the machine its /dev/null
        writers.append(lambda: prepare_output(path, overwrite=True))
    for write in writers:
        with pytest.raises(FileError, match=message):
            write()
    if kind != "a device":
        with pytest.raises(OSError, match="it is no plain file, and nothing is put in its place"):
            write_file(Path(path), b"x")
    assert (os.lstat(path), names(tmp_path)) == before
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        output_path(str(path))


@pytest.mark.parametrize("path", ["/dev/xdyna-made.mp4", "/dev/../dev/xdyna-made", "/dev/fd/77"])
def test_nothing_is_written_among_devices(path):
    with pytest.raises(FileError, match="would lie among the devices of this machine"):
        check_output(path)


def test_nothing_is_written_in_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=f"cannot be written: '{tmp_path}/file' is a file, not a folder"):
        check_output(tmp_path / "file" / "folder" / "out")
    with pytest.raises(OSError):
        write_file(tmp_path / "file" / "out", b"x")


def test_nothing_is_written_behind_a_broken_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    message = f"cannot be written: '{tmp_path}/link' is a broken link, not a folder; choose a folder"
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        output_path(str(tmp_path / "link" / "out.mp4"))
    assert names(tmp_path) == ["link"]


def test_other_names_are_outputs(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in (
        tmp_path,
        tmp_path / "file",
        tmp_path / "link",
        tmp_path / "new" / "er",
        "/dev/shm/new",
        "a\0b",
        "x" * 5000,
    ):
        assert output_path(str(name)) == Path(name)
