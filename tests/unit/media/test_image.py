import warnings
import zlib
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features

from xdyna.core.errors import FileError
from xdyna.media import CropResize, MediaError, center_crop, read_image, top_quarter_crop, write_png
from xdyna.media.image import image_size


def gradient(height=40, width=56):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).clip(0, 255).astype(np.uint8)


def save(path, array, mode=None, **kwargs):
    Image.fromarray(array, mode).save(path, **kwargs) if mode else Image.fromarray(array).save(path, **kwargs)
    return path


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp"])
def test_lossless_kinds(tmp_path, kind):
    path = save(tmp_path / f"a.{kind}", gradient(), **({"lossless": True} if kind == "webp" else {}))
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert np.array_equal(image, gradient())


def test_jpeg_equals_opencv(tmp_path, shared_dir):
    path = shared_dir / "data" / "person_1.jpg"
    expected = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(int)
    assert np.abs(read_image(path) - expected).max() <= 2  # two JPEG libraries


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "tiff", "webp"])
def test_exif_orientation(tmp_path, orientation, kind):
    """EXIF 2.32, 4.6.4: which side of the stored image row 0 and column 0 are."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
    image = read_image(save(tmp_path / f"a.{kind}", gradient(), exif=exif, **options)).astype(int)
    shown = gradient()
    expected = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: shown.transpose(1, 0, 2)[:, ::-1],
        7: shown.transpose(1, 0, 2)[::-1, ::-1],
        8: shown.transpose(1, 0, 2)[::-1],
    }[orientation]
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= (4 if kind == "jpg" else 0)


def test_broken_exif_is_ignored(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(gradient()).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_image(path).shape == (40, 56, 3)


def test_alpha_is_laid_on_white(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    image = read_image(save(tmp_path / "a.png", colours)).astype(float)
    alpha = colours[..., 3:] / 255
    expected = colours[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(image - expected).max() <= 1.0

    grey = colours[..., [0, 3]]
    image = read_image(save(tmp_path / "la.png", grey, "LA")).astype(float)
    assert np.abs(image - (grey[..., :1] * alpha + 255 * (1 - alpha))).max() <= 1.0


def test_transparent_colour_and_palette(tmp_path):
    palette = Image.fromarray(gradient()).quantize(16)
    palette.save(tmp_path / "p.png")
    assert np.array_equal(read_image(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))
    palette.save(tmp_path / "t.png", transparency=3)
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[np.asarray(palette) == 3] = 255
    assert np.array_equal(read_image(tmp_path / "t.png"), expected)
    key = gradient()
    key[:8] = (1, 2, 3)
    Image.fromarray(key).save(tmp_path / "k.png", transparency=(1, 2, 3))
    assert (read_image(tmp_path / "k.png")[:8] == 255).all()


def test_grey_and_bilevel(tmp_path):
    grey = gradient()[..., 0]
    image = read_image(save(tmp_path / "l.png", grey))
    assert np.array_equal(image, np.repeat(grey[..., None], 3, axis=-1))
    Image.fromarray((grey > 99).astype(np.uint8) * 255).convert("1").save(tmp_path / "b.png")
    assert np.array_equal(read_image(tmp_path / "b.png")[..., 0], np.where(grey > 99, 255, 0))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_grey_by_value(tmp_path, kind):
    deep = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    image = read_image(save(tmp_path / f"a.{kind}", deep))
    assert np.array_equal(image[..., 1], np.round(deep / 257).astype(np.uint8))


def test_16_bit_colour(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (40, 56, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., ::-1])
    assert np.abs(read_image(tmp_path / "a.png") - deep / 257).max() <= 1.0


def test_cmyk_without_profile(tmp_path):
    """Naive inks: R = 255 (1 - C) (1 - K), as Photoshop-style (Adobe, inverted) JPEG and as TIFF."""
    inks = np.zeros((40, 40, 4), np.uint8)
    inks[:, :20] = (255, 0, 0, 0)
    inks[20:, 20:] = (0, 0, 0, 128)
    for kind in ("jpg", "tiff"):
        image = read_image(save(tmp_path / f"a.{kind}", inks, "CMYK")).astype(int)
        assert np.abs(image[10, 5] - (0, 255, 255)).max() <= 3
        assert np.abs(image[5, 35] - (255, 255, 255)).max() <= 3
        assert np.abs(image[35, 35] - (127, 127, 127)).max() <= 3


def test_colour_profile_is_honoured(tmp_path):
    """A linear-light profile made by hand: value v means v / 255 of the light, so sRGB shows it brighter."""
    profile = ImageCms.ImageCmsProfile(BytesIO(_linear_profile()))
    flat = np.full((40, 40, 3), 64, np.uint8)
    image = read_image(save(tmp_path / "a.png", flat, icc_profile=profile.tobytes())).astype(int)
    light = 64 / 255
    expected = 255 * (1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(image - expected).max() <= 2

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (read_image(save(tmp_path / "s.png", flat, icc_profile=srgb)) == 64).all()
    assert (read_image(save(tmp_path / "d.png", flat, icc_profile=b"damaged" * 30)) == 64).all()


def _linear_profile():
    """The library's sRGB profile with the identity for tone curves ('curv' without entries, ICC.1 10.6)."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        entry = data.find(name)
        offset = int.from_bytes(data[entry + 4 : entry + 8], "big")
        data[offset : offset + 12] = b"curv" + bytes(8)
        data[entry + 8 : entry + 12] = (12).to_bytes(4, "big")
    text = data.find("sRGB".encode("utf-16-be"))
    while text >= 0:
        data[text : text + 8] = "line".encode("utf-16-be")
        text = data.find("sRGB".encode("utf-16-be"))
    return bytes(data)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif") == (255, 0, 0)).all()


# ---- size


@pytest.mark.parametrize("size", [(1, 1), (31, 400), (400, 31)])
def test_too_small(tmp_path, size):
    with pytest.raises(FileError, match=f"{size[1]} x {size[0]} px; each side needs at least 32 px"):
        read_image(save(tmp_path / "a.png", gradient(*size)))
    assert read_image(save(tmp_path / "b.png", gradient(32, 32))).shape == (32, 32, 3)


@pytest.mark.parametrize(("kind", "mode"), [("png", "RGB"), ("png", "P"), ("png", "I;16"), ("jpg", "RGB")])
def test_large_picture_is_reduced(tmp_path, kind, mode):
    path = tmp_path / f"a.{kind}"
    exif = Image.Exif()
    exif[0x0112] = 6
    small = Image.linear_gradient("L").resize((9000, 96), Image.Resampling.BICUBIC)
    if mode == "I;16":
        deep = (np.asarray(small).astype(np.uint16) * 257).astype(np.uint16)
        picture = Image.fromarray(deep)
    else:
        picture = small.convert("RGB") if mode == "RGB" else small.quantize(256)
    picture.save(path, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(path)
    assert image.shape == (4096, 44, 3)  # turned upright as well
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("L" if mode != "I;16" else "I;16"))
    scale = 257.0 if mode == "I;16" else 1.0
    means = [
        np.abs(image[a : a + 512].mean() - expected[a * 9000 // 4096 : (a + 512) * 9000 // 4096].mean() / scale)
        for a in range(0, 4096, 512)
    ]
    assert max(means) < 2.5


def test_8192_is_not_reduced(tmp_path):
    assert read_image(save(tmp_path / "a.png", gradient(32, 8192))).shape == (32, 8192, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_12000_px(tmp_path, kind):
    Image.new("RGB", (12000, 12000), (10, 200, 30)).save(tmp_path / f"a.{kind}")
    image = read_image(tmp_path / f"a.{kind}")
    assert image.shape == (4096, 4096, 3)
    assert np.abs(image[::500, ::500].astype(int) - (10, 200, 30)).max() <= 2


def test_decompression_bomb_is_refused_by_its_header(tmp_path):
    data = bytearray(save(tmp_path / "a.png", gradient()).read_bytes())
    data[16:24] = (40000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(FileError, match="40000 x 40000 px; at most 20000"):
        read_image(tmp_path / "bomb.png")


def test_the_limit_of_pillow_is_put_back(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    read_image(save(tmp_path / "a.png", gradient()))
    with pytest.raises(FileError):
        read_image(tmp_path / "none.png")
    assert before == Image.MAX_IMAGE_PIXELS
    assert before is not None


# ---- bad input


def _refused(path):
    """The message of the refusal, empty where the image is read; any other exception fails the test."""
    try:
        assert read_image(path).ndim == 3
    except MediaError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_truncated_at_many_points(tmp_path, kind):
    rng = np.random.default_rng(0)
    data = save(tmp_path / f"a.{kind}", rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).read_bytes()
    path = tmp_path / f"cut.{kind}"
    refused = 0
    for share in np.linspace(0.005, 0.97, 40):
        path.write_bytes(data[: max(1, int(len(data) * share))])
        message = _refused(path)
        refused += bool(message)
        assert not message or "damaged or truncated" in message or "is not an image" in message
    assert refused >= (38 if kind != "tiff" else 30)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_flipped_bytes_never_escape(tmp_path, kind):
    rng = np.random.default_rng(1)
    data = save(tmp_path / f"a.{kind}", gradient()).read_bytes()
    path = tmp_path / f"flip.{kind}"
    for _ in range(150):
        broken = bytearray(data)
        for at in rng.integers(0, min(len(data), 400), rng.integers(1, 6)):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        _refused(path)


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("a.jpg", b"hello, I am text, and no picture", "is not an image"),
        ("a.jpg", b"<!DOCTYPE html><html></html>", "a web page"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a web page or SVG drawing"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC image"),
        ("a.jpg", b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "a video"),
        ("a.png", b"", r"empty \(0 bytes\)"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n", "is not an image"),
    ],
)
def test_not_a_picture(tmp_path, name, content, pattern):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=pattern):
        read_image(tmp_path / name)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF")
@pytest.mark.parametrize("at", [81, 115, 209, 241])
def test_damaged_avif(tmp_path, at):
    """Its decoder raises errors of a kind that no other one does."""
    save(tmp_path / "a.avif", np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8))
    content = bytearray((tmp_path / "a.avif").read_bytes())
    content[at] = 255 if at == 241 else 0
    (tmp_path / "a.avif").write_bytes(content)
    assert "damaged or truncated" in _refused(tmp_path / "a.avif")


def test_missing_and_folder(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(FileError, match="is a folder"):
        read_image(tmp_path)


def test_float_pixels_are_refused(tmp_path):
    with pytest.raises(FileError, match="save it as 8-bit RGB"):
        read_image(save(tmp_path / "a.tiff", np.zeros((40, 40), np.float32)))


def test_heic(tmp_path, shared_dir):
    """What phones make by default: the same picture, upright, and the missing package is named."""
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    still = cv2.resize(gradient(), (112, 80))
    heif = pillow_heif.from_pillow(Image.fromarray(still))
    heif.save(tmp_path / "a.heic", quality=-1, chroma=444, exif=exif.tobytes())
    image = read_image(tmp_path / "a.heic").astype(int)
    assert image.shape == (112, 80, 3)
    assert np.abs(image - np.rot90(still, -1)).max() <= 4  # lossless but for the conversion of colours
    photo = shared_dir / "cases/photo.heic"
    if photo.is_file():
        original = read_image(shared_dir / "data/person_1.jpg").astype(int)
        assert np.abs(read_image(photo) - original).mean() < 6


def test_heic_without_its_package(tmp_path, monkeypatch):
    import xdyna.media.image as module

    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileError, match="HEIC image, which needs: pip install pillow-heif"):
        read_image(tmp_path / "a.heic")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif(tmp_path):
    assert read_image(save(tmp_path / "a.avif", gradient())).shape == (40, 56, 3)


# ---- writing


def test_write_png(tmp_path):
    path = write_png(tmp_path / "new" / "a.png", gradient())
    assert np.array_equal(read_image(path), gradient())
    with pytest.raises(FileError, match="exists already"):
        write_png(path, gradient())
    write_png(path, gradient()[::-1], overwrite=True)
    assert np.array_equal(read_image(path), gradient()[::-1])
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    for wrong in (gradient().astype(float), gradient()[..., :2], np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(FileError, match="uint8 array"):
            write_png(tmp_path / "b.png", wrong)
    with pytest.raises(FileError, match="cannot be written"):
        write_png("/proc/xdyna.png", gradient())


def test_write_png_without_space_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(FileError, match="full; nothing was kept"):
        write_png(tmp_path / "a.png", gradient())
    assert list(tmp_path.iterdir()) == []


def test_interrupt_while_writing_png_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_png(tmp_path / "a.png", gradient())
    assert list(tmp_path.iterdir()) == []


# ---- crops


def test_top_quarter_crop_is_the_official_one(parity_dir):
    golden = np.load(parity_dir / "golden.npz")
    target = tuple(int(v) for v in golden["crop2ratio/target"])
    for size, row in zip(golden["crop2ratio/sizes"], golden["crop2ratio/out"], strict=True):
        crop = top_quarter_crop(tuple(int(v) for v in size), target)
        assert (int(size[1]), int(size[0]), *crop.box) == (row[0], row[1], row[2], row[3], row[4], row[5])
        assert crop.size == target


def test_top_quarter_crop_known_values():
    """Worked by hand: 480 x 640 to 224 x 160: width int(480 / 224 * 160) = 342, left (640 - 342) // 2 = 149."""
    assert top_quarter_crop((480, 640), (224, 160)).box == (149, 0, 342, 480)
    assert top_quarter_crop((900, 400), (224, 160)).box == (0, 85, 400, 560)
    assert top_quarter_crop((896, 512), (896, 512)).box == (0, 0, 512, 896)
    assert center_crop((900, 400), (224, 160)).box == (0, 170, 400, 560)
    assert center_crop((480, 640), (224, 160)).box == (149, 0, 342, 480)


def test_crops_are_the_largest_that_fit():
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = tuple(int(v) for v in rng.integers(2, 3000, 2))
        target = tuple(int(v) for v in rng.integers(8, 1200, 2))
        for make in (top_quarter_crop, center_crop):
            left, top, width, height = make(size, target).box
            assert left >= 0
            assert top >= 0
            assert left + width <= size[1]
            assert top + height <= size[0]
            assert width == size[1] or height == size[0]
            # As near to the aspect as whole pixels allow.
            assert abs(width * target[0] - height * target[1]) <= max(target) or min(width, height) == 1


def test_crop_image_against_block_means():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    crop = CropResize(box=(6, 4, 24, 16), size=(4, 6))
    blocks = picture[4:20, 6:30].reshape(4, 4, 6, 4, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(crop.image(picture) - blocks).max() <= 0.51
    assert np.abs(crop.image(picture.astype(np.float32)) - blocks).max() < 1e-3
    assert crop.image(picture[..., 0]).shape == (4, 6)
    assert crop.image(picture[..., :1]).shape == (4, 6, 1)
    same = CropResize(box=(2, 3, 10, 8), size=(8, 10)).image(picture, interpolation="bilinear")
    assert np.array_equal(same, picture[3:11, 2:12])
    same[:] = 0
    assert picture[3:11, 2:12].any()


@pytest.mark.parametrize(
    ("shape", "box", "size"),
    [
        ((3584, 2048), (0, 0, 2048, 3584), (896, 512)),
        ((400, 300), (11, 30, 250, 333), (100, 64)),
        ((100, 64), (5, 7, 40, 60), (128, 96)),
    ],
)
def test_bilinear_is_that_of_pillow(shape, box, size):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    crop = CropResize(box=box, size=size)
    cut = Image.fromarray(picture).crop((box[0], box[1], box[0] + box[2], box[1] + box[3]))
    expected = np.asarray(cut.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    result = crop.image(picture, interpolation="bilinear")
    assert np.array_equal(result, expected)
    result[:] = 0  # writable
    for channels in (1, 2, 4):
        many = np.concatenate([picture, picture[..., :1]], axis=-1)[..., :channels]
        wanted = np.concatenate([expected, expected[..., :1]], axis=-1)[..., :channels]
        assert np.array_equal(crop.image(many, interpolation="bilinear"), wanted)
    assert np.array_equal(crop.image(picture[..., 1], interpolation="bilinear"), expected[..., 1])
    floats = crop.image(picture.astype(np.float32), interpolation="bilinear")
    assert floats.dtype == np.float32
    assert np.abs(floats - expected).max() < 1.01  # Pillow rounds after each direction where pixels are 8-bit


def test_bilinear_averages_when_reducing():
    """White noise of deviation 1 reduced n-fold by a triangle 2 n wide keeps 2 / (3 n); single pixels would keep 1."""
    noise = np.random.default_rng(0).normal(0, 1, (1024, 1024)).astype(np.float32)
    out = CropResize(box=(0, 0, 1024, 1024), size=(128, 128)).image(noise, interpolation="bilinear")
    assert out.std() == pytest.approx(2 / 3 / 8, rel=0.05)


def test_area_is_that_of_opencv():
    picture = np.random.default_rng(0).integers(0, 256, (700, 400, 3), dtype=np.uint8)
    out = CropResize(box=(10, 20, 350, 612), size=(224, 128)).image(picture)
    assert np.array_equal(out, cv2.resize(picture[20:632, 10:360], (128, 224), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("interpolation", ["area", "bilinear"])
def test_points_follow_the_picture(interpolation):
    """A bright spot is found where `points` says, when reducing and when enlarging."""
    for size in ((60, 80), (400, 533)):
        picture = np.zeros((200, 300), np.float32)
        picture[70, 150] = 1.0
        picture = cv2.GaussianBlur(picture, (0, 0), 7)
        crop = CropResize(box=(50, 20, 200, 150), size=size)
        out = crop.image(picture, interpolation=interpolation)
        y, x = np.mgrid[0 : size[0], 0 : size[1]]
        centre = np.array([(x * out).sum(), (y * out).sum()]) / out.sum()
        assert centre == pytest.approx(crop.points(np.array([150.0, 70.0])), abs=0.05)
    assert crop.points(np.array([[[50, 20]]], np.float32)).dtype == np.float32
    assert CropResize(box=(0, 0, 9, 7), size=(7, 9)).points(np.array([3, 4])).tolist() == [3.0, 4.0]


def test_crop_refuses():
    with pytest.raises(FileError, match="does not fit"):
        CropResize(box=(10, 0, 30, 20), size=(8, 8)).image(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(FileError, match="interpolation 'cubic' is unknown"):
        CropResize(box=(0, 0, 30, 20), size=(8, 8)).image(np.zeros((20, 30, 3), np.uint8), interpolation="cubic")
    with pytest.raises(FileError, match="needs uint8 or float32; given int64"):
        CropResize(box=(0, 0, 30, 20), size=(8, 8)).image(np.zeros((20, 30, 3), np.int64), interpolation="bilinear")
    with pytest.raises(FileError, match="at least 1 px"):
        center_crop((0, 4), (8, 8))


def test_the_size_as_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for ending in ("jpg", "png", "webp"):
        Image.new("RGB", (64, 40)).save(tmp_path / f"a.{ending}", exif=exif)
        assert image_size(tmp_path / f"a.{ending}") == (64, 40), ending
        assert image_size(tmp_path / f"a.{ending}", upright=True) == (40, 64), ending
        assert read_image(tmp_path / f"a.{ending}").shape == (64, 40, 3), ending
