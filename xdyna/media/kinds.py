"""What a file is by its first bytes, for files whose names mean nothing: uploads and downloads.

Only what is known here reaches a decoder, so that playlists, which make decoders open other files and addresses, never
do.
"""

from __future__ import annotations

IMAGES = "a PNG, JPEG, WebP, HEIC, AVIF, BMP, TIFF or GIF image"
VIDEOS = "an MP4, MOV, MKV, WebM, AVI or GIF video"
_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")


def image_kind(head: bytes) -> str | None:
    """The ending of an image by how it begins; None for everything else."""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return (".avif" if brand in (b"avif", b"avis") else ".heic") if brand in _HEIF else None
    kinds = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"GIF87a": ".gif", b"GIF89a": ".gif"}
    kinds |= {b"II*\0": ".tif", b"MM\0*": ".tif"}
    found = next((ending for begin, ending in kinds.items() if head.startswith(begin)), None)
    if found is None and head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if found is None and head[:2] == b"BM" and len(head) > 26 and head[6:10] == b"\0\0\0\0":
        return ".bmp"
    return found


def video_kind(head: bytes) -> str | None:
    """The ending of a video by how it begins; None for everything else."""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return None if brand in _HEIF else ".mov" if brand == b"qt  " else ".mp4"
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):  # of QuickTime's early days
        return ".mov"
    if head[:4] == b"\x1aE\xdf\xa3":
        return ".webm" if b"webm" in head[:64] else ".mkv"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return ".avi"
    return ".gif" if head[:6] in (b"GIF87a", b"GIF89a") else None


def keypoints_kind(head: bytes) -> str | None:
    """The ending of keypoints (.npz), by how they begin; None for everything else."""
    return ".npz" if head.startswith(b"PK\3\4") else None
