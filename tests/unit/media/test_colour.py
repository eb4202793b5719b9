"""Colours of videos against the formulas of ITU-R BT.601, 709, 2020, 2087 and 2100, worked out here once more."""

import av
import numpy as np
import pytest
from PIL import Image

from xdyna.media import MediaError, MediaWarning, probe, read_frames
from xdyna.media.colour import roll_off
from xdyna.media.index import read_index
from xdyna.media.reading import decord_is_exact

LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Shares of red and blue in the luma of a matrix (ITU-T H.273 code)."""
RAMP = [(int(grey),) * 3 for grey in np.linspace(0, 255, 8)]
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
PATCHES = np.array([*RAMP, *COLOURS, (200, 120, 80), (30, 60, 90)], np.float64).reshape(4, 4, 3)
TO_BT2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]  # BT.2087, table 2


def store(path, rgb, *, matrix, full, primaries, transfer, codec="libx264", pixels="yuv420p", options=None,
          told=None):  # fmt: skip
    """A video of 4 equal frames of 4 x 4 patches of 16 px; `rgb` (4, 4, 3) are signals in [0, 1].

    The file says that its matrix is `told`, by default the true one.
    """
    red, blue = LUMA[matrix]
    y = rgb @ (red, 1 - red - blue, blue)
    planes = [y, (rgb[..., 2] - y) / (2 - 2 * blue), (rgb[..., 0] - y) / (2 - 2 * red)]
    bits = 10 if "10" in pixels else 8
    scale = 2 ** (bits - 8)
    top = 2**bits - 1
    frame = av.VideoFrame(64, 64, pixels)
    for number, (plane, values) in enumerate(zip(frame.planes, planes, strict=True)):
        span, low = ((top, 0) if full else (219 * scale, 16 * scale)) if number == 0 else (
            (top if full else 224 * scale), 128 * scale)  # fmt: skip
        numbers = np.rint(values * span + low).clip(0, top).astype(np.uint16 if bits > 8 else np.uint8)
        drawn = numbers.repeat(plane.height // 4, 0).repeat(plane.width // 4, 1)
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : drawn.shape[1] * drawn.itemsize] = drawn.view(np.uint8)
        plane.update(rows)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
        context = stream.codec_context
        context.colorspace, context.color_range = told or matrix, 2 if full else 1
        context.color_primaries, context.color_trc = primaries, transfer
        frame.colorspace, frame.color_range = told or matrix, 2 if full else 1
        for number in range(4):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown(path):
    """The 4 x 4 patches as they are read from the third frame."""
    return list(read_frames(path))[2][8::16, 8::16].astype(int)


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 5, 6])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mp4", {}),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"lossless": "1", "cpu-used": "8"}}),
        ("a.mkv", {"codec": "ffv1", "pixels": "yuv420p10le", "options": {}}),
    ],
)
def test_matrix_and_range_are_honoured(tmp_path, name, kind, matrix, full):
    """A grey ramp and primaries come back within 2 levels; with decord where it reads, too."""
    primaries, transfer = (1, 1) if matrix == 1 else (matrix, 6)
    path = store(
        tmp_path / name, PATCHES / 255, matrix=matrix, full=full, primaries=primaries, transfer=transfer, **kind
    )
    assert np.abs(shown(path) - PATCHES).max() <= 2


def signals(rgb, transfer):
    """SDR codes, shown with white at 203 cd/m2, as signals of BT.2020 primaries: SDR (14), PQ (16), HLG (18)."""
    light = (rgb / 255) ** 2.4 @ np.array(TO_BT2020).T
    if transfer == 14:
        return light ** (1 / 2.4)
    if transfer == 16:
        power = (light * 203 / 10000) ** (2610 / 16384)
        return ((3424 + 18.8515625 * 128 * 32 * power) / (4096 + 18.6875 * 128 * 32 * power)) ** (2523 / 32)
    display = light * 203 / 1000
    luminance = np.maximum(display @ (0.2627, 0.678, 0.0593), 1e-12)[..., None]
    scene = display * luminance ** (1 / 1.2 - 1)
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    )


@pytest.mark.parametrize(("transfer", "name"), [(14, "SDR"), (16, "PQ"), (18, "HLG")])
def test_wide_gamut_and_hdr_become_bt709(tmp_path, transfer, name):
    """Colours up to 80 % of white come back within 3 levels (of 10 bits, twice converted), and HDR is said."""
    rgb = 40 + PATCHES * 0.64
    path = store(tmp_path / "a.mkv", signals(rgb, transfer), matrix=9, full=False, primaries=9, transfer=transfer,
                 codec="ffv1", pixels="yuv444p10le", options={})  # fmt: skip
    if transfer == 14:
        found = shown(path)
    else:
        with pytest.warns(MediaWarning, match=rf"is HDR \({name}\): its frames are tone-mapped to SDR"):
            found = shown(path)
    assert np.abs(found - rgb).max() <= 3
    assert not decord_is_exact(read_index(path))


def test_eight_bit_wide_gamut_is_not_left_to_decord(tmp_path):
    rgb = 40 + PATCHES * 0.64
    path = store(tmp_path / "a.mp4", signals(rgb, 14), matrix=9, full=False, primaries=9, transfer=14)
    assert np.abs(shown(path) - rgb).mean() < 2, "8 bits of a wide gamut are coarse"


def test_tone_curve():
    """Ascending, smooth, the identity below the knee, 1 at and above the peak."""
    light = np.linspace(0, 8, 4001)
    curve = roll_off(light)
    slopes = np.diff(curve) / np.diff(light)
    assert np.allclose(curve[light <= 0.6], light[light <= 0.6])
    assert curve[-1] == pytest.approx(1)
    assert (slopes >= -1e-9).all()
    assert np.abs(np.diff(slopes[light[1:] < 4.9])).max() < 0.01
    assert 0.75 < np.interp(1, light, curve) < 0.9, "white stays bright"


def test_colours_that_cannot_be_read_are_refused(tmp_path):
    path = store(tmp_path / "a.mp4", PATCHES / 255, matrix=9, full=False, primaries=9, transfer=16, told=14)
    with pytest.raises(MediaError, match=r"colours of a kind that is not read \(ICtCp\); convert it to SDR"):
        probe(path)


HIDDEN = np.array([200, 30, 90])
SHARES = np.array([0, 255, 128, 51])


def _with_pillow(path, frame):
    images = [Image.fromarray(frame) for _ in range(4)]
    for number, image in enumerate(images):
        image.putpixel((20 + number, 2), (0, 0, 0, 255))  # equal frames would be left out
    more = {"format": "PNG", "default_image": False} if path.suffix == ".apng" else {"disposal": 2}
    images[0].save(path, save_all=True, append_images=images[1:], duration=40, **more)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("vp9.webm", "libvpx-vp9", "yuva420p", {"cpu-used": "8"}),
        ("vp8.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),
        ("prores.mov", "prores_ks", "yuva444p10le", {}),
        ("animation.mov", "qtrle", "argb", {}),
        ("a.gif", "", "", {}),
        ("a.apng", "", "", {}),
    ],
)
def test_transparent_videos_lie_on_white(tmp_path, name, codec, pixels, options):
    """What is hidden below transparent pixels is not shown; half transparent ones are mixed with white."""
    frame = np.full((64, 64, 4), [*HIDDEN, 0], np.uint8)
    frame[..., 3] = SHARES.repeat(16)
    path = tmp_path / name
    if not codec:
        _with_pillow(path, frame)
    else:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
            for number in range(4):
                image = av.VideoFrame.from_ndarray(frame, format="rgba").reformat(format=pixels)
                image.pts = number
                container.mux(stream.encode(image))
            container.mux(stream.encode(None))
    share = np.where(SHARES > 0, 255, 0) if name == "a.gif" else SHARES  # GIF knows all or nothing
    expected = HIDDEN * share[:, None] / 255 + 255 - share[:, None]
    found = list(read_frames(path))
    assert len(found) == 4
    assert np.abs(found[2][40, 8::16] - expected).max() <= 3
