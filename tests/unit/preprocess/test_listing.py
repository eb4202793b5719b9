"""Folders, globs and lists become sources; every mistake is told in one sentence."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xdyna.config.data import DataError
from xdyna.media import MediaWarning
from xdyna.preprocess.listing import read_sources


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder of files that are called videos; nothing opens them here."""
    for name in ("a/clip.mp4", "b/clip.MP4", "b/Tänzerin 1.mov", "b/notes.md", "b/.hidden.mp4", ".cache/x.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def names(sources: list) -> list[str]:
    return [source.id for source in sources]


def test_folder_is_searched_below_and_hidden_files_are_left_out(disk: Path):
    sources = read_sources([str(disk)])
    assert [s.path for s in sources] == [str(disk / n) for n in ("a/clip.mp4", "b/Tänzerin 1.mov", "b/clip.MP4")]
    assert names(sources) == ["a-clip", "T_nzerin_1", "b-clip"]
    assert [s.group for s in sources] == names(sources), "a video is its own group"
    assert {s.kind for s in sources} == {None}


def test_glob_takes_videos_alone(disk: Path):
    assert names(read_sources([f"{disk}/b/*"], kind="human")) == ["T_nzerin_1", "clip"]
    assert {s.kind for s in read_sources([f"{disk}/**/*"], kind="scene")} == {"scene"}
    assert len(read_sources([f"{disk}/**/*.mp4"])) == 1


def test_brackets_in_a_file_name_are_no_pattern(disk: Path):
    (disk / "a" / "take [1].mp4").write_bytes(b"x")
    assert names(read_sources([str(disk / "a" / "take [1].mp4")])) == ["take_1"]


def test_same_file_comes_once(disk: Path):
    assert len(read_sources([str(disk), str(disk / "a" / "clip.mp4"), str(disk / "a")])) == 3


def test_ids_do_not_depend_on_where_the_data_lies(disk: Path, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "deep" / "er"
    other.mkdir(parents=True)
    for name in ("a/clip.mp4", "b/clip.MP4"):
        (other / name).parent.mkdir()
        (other / name).write_bytes(b"x")
    assert names(read_sources([str(other)])) == ["a-clip", "b-clip"]


def test_clashes_that_folders_cannot_tell_apart_are_numbered(tmp_path: Path):
    for name in ("a b.mp4", "a-b.mp4", "a_b.mp4", "a_b.mov"):
        (tmp_path / name).write_bytes(b"x")
    found = names(read_sources([str(tmp_path)]))
    assert len({name.lower() for name in found}) == 4
    assert found == names(read_sources([str(tmp_path)]))


def test_addresses_are_kept(disk: Path):
    sources = read_sources(["s3://bucket/take 1/x.mp4", "memory://y.mp4"])
    assert [s.path for s in sources] == ["s3://bucket/take 1/x.mp4", "memory://y.mp4"]
    assert names(sources) == ["x", "y"]


ROWS = [
    {"id": "one", "path": "a/clip.mp4", "kind": "Human", "caption": "a, dance", "license": "CC0", "group": "anna"},
    {"id": "two", "path": "s3://bucket/b.mp4", "kind": "", "caption": "", "license": "", "group": ""},
]


def write_list(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".csv":
        quoted = [",".join(f'"{value}"' for value in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *quoted]), encoding="utf-8-sig")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_lists(disk: Path, suffix: str):
    one, two = read_sources([str(write_list(disk / f"list{suffix}", ROWS))], kind="scene")
    assert (one.id, one.path, one.kind) == ("one", str(disk / "a/clip.mp4"), "human"), "the list's word counts"
    assert (one.caption, one.license, one.group) == ("a, dance", "CC0", "anna")
    assert (two.path, two.kind, two.caption, two.group) == ("s3://bucket/b.mp4", "scene", "", "two")


def test_unknown_columns_are_named_once(disk: Path):
    path = write_list(disk / "x.jsonl", [{"path": "a/clip.mp4", "stars": 5, "note": "n"}, {"path": "b/clip.MP4"}])
    with pytest.warns(MediaWarning, match="stars, note") as caught:
        assert names(read_sources([str(path)])) == ["a-clip", "b-clip"]
    assert len(caught) == 1


def test_given_ids_come_before_made_ones(disk: Path):
    path = write_list(disk / "x.jsonl", [{"path": "a/clip.mp4"}, {"id": "clip", "path": "b/clip.MP4"}])
    assert names(read_sources([str(path)])) == ["a-clip", "clip"]


def test_humanvid_urls_stand_for_downloaded_files(tmp_path: Path):
    """The published form: one URL a line; files lie wherever they were downloaded to, below the list."""
    for name in ("videos/0/4919657-hd_1920_1080_24fps.mp4", "videos/1/a b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    urls = tmp_path / "pexels-horizontal-urls.txt"
    urls.write_text(
        "https://videos.pexels.com/video-files/4919657/4919657-hd_1920_1080_24fps.mp4\n\n"
        "https://videos.pexels.com/video-files/1/a%20b.mp4?download=1\n"
        "https://videos.pexels.com/video-files/2/never.mp4\n"
    )
    with pytest.warns(MediaWarning, match=r"1 of 3 URLs .*never\.mp4"):
        sources = read_sources([str(urls)], kind="human")
    assert names(sources) == ["4919657-hd_1920_1080_24fps", "a_b"]
    assert sources[0].path == str(tmp_path / "videos/0/4919657-hd_1920_1080_24fps.mp4")


def test_humanvid_json_of_segments_gives_each_video_once(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "7.mp4").write_bytes(b"x")
    path = tmp_path / "pexels_horizontal_10.0s.json"
    row = {"video_path": "./data/pexels-my-h/videos/0/7.mp4", "kps_path": "./data/k.mp4"}
    path.write_text(json.dumps([row | {"start_frame": k, "end_frame": k + 9} for k in (0, 10)]))
    with pytest.warns(MediaWarning, match="kps_path, start_frame, end_frame"):
        (source,) = read_sources([str(path)])
    assert (source.id, source.path) == ("7", str(tmp_path / "videos" / "7.mp4"))


def test_table_without_header_that_begins_with_files(disk: Path):
    (disk / "plain.csv").write_text("a/clip.mp4,True,False,1.0\nb/clip.MP4,True,True,1.0\n")
    assert names(read_sources([str(disk / "plain.csv")])) == ["a-clip", "b-clip"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id,caption\nx,y\n", "no column of paths"),
        ("path\n", "names no video"),
        ("path\nmissing.mp4\n", "does not exist"),
        ("path,kind\na/clip.mp4,dance\n", "kind is 'dance'"),
        ("id,path\nx,a/clip.mp4\nX,b/clip.MP4\n", "already given in list"),
        ("id,path\n../x,a/clip.mp4\n", "cannot be part of a file name"),
        ("path,caption\na/clip.mp4,one, two\n", "quotation marks"),
        ("id,path\nx,\n", "row 1 has no path"),
        ("path\nhttps://x.y/never.mp4\n", "none of its 1 URLs was downloaded"),
        ("path\nhttps://x.y/clip.mp4\n", "both"),
    ],
)
def test_mistakes_in_lists(disk: Path, content: str, says: str):
    (disk / "b" / "clip.mp4").write_bytes(b"x")
    (disk / "list.csv").write_text(content)
    with pytest.raises(DataError, match=says) as caught:
        read_sources([str(disk / "list.csv")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", b'{"path": "a"\n', "line 1 is no JSON"),
        ("x.json", b'{"path": "a"}', "a list of objects"),
        ("x.json", b"[3]", "row 1 is a JSON int"),
        ("x.csv", b"path\n\xff\xfe", "UTF-8"),
        ("x.parquet", b"PAR1 no", "damaged or no Parquet"),
    ],
)
def test_damaged_lists(tmp_path: Path, name: str, content: bytes, says: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_sources([str(tmp_path / name)])


def test_nothing_to_read(tmp_path: Path):
    for inputs, says in (
        ([], "no videos were given"),
        ([str(tmp_path)], "holds no video"),
        ([str(tmp_path / "no.mp4")], "does not exist"),
        ([f"{tmp_path}/*.mp4"], "matches no file"),
    ):
        with pytest.raises(DataError, match=says):
            read_sources(inputs)
    with pytest.raises(DataError, match="kind is 'people'"):
        read_sources(["s3://x/y.mp4"], kind="people")
