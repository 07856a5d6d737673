"""The page of a large image, asked for over HTTP as a browser does."""

import io
import json
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection

import numpy as np
import pytest
import tifffile
from conftest import ROOT
from PIL import Image, ImageCms, PngImagePlugin

from ssl_diffusion import cli, demo, view
from ssl_diffusion.data.slides import open_image, open_slide
from ssl_diffusion.errors import InputError
from ssl_diffusion.viewer import region as region_module
from ssl_diffusion.viewer.region import Region

REGION = (512, 1024, 600, 500)
SETTINGS = {
    "model_sha256": "ab" * 32,
    "reference": demo.SLIDE,
    "region": [*REGION],
    "rows": 8,
    "cols": 10,
    "patch_px": 64,
    "mpp": 0.5,
    "seconds": float("nan"),
}


def write_tif(path, pixels, description):
    """A plain pyramidal tiled TIFF of two levels."""
    with tifffile.TiffWriter(path) as file:
        for level in (1, 2):
            file.write(
                np.asarray(Image.fromarray(pixels).reduce(level)),
                tile=(128, 128),
                compression="deflate",
                photometric="rgb",
                subfiletype=level - 1,
                description=description if level == 1 else None,
                metadata=None,
            )


@contextmanager
def serving(path, reference=None, region=None):
    """A server of the image, answering, on a free port."""
    server = view.make_server(str(path), reference, region, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(server, path, method="GET", **headers):
    """(status, headers, body) of one request."""
    connection = HTTPConnection(*server.server_address, timeout=30)
    connection.request(method, path, headers={"Host": server.hosts[0]} | headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def about(server):
    return json.loads(ask(server, "/about.json")[2])


def tile(server, path):
    status, headers, body = ask(server, path)
    assert status == 200 and headers["Content-Type"] == "image/png", (path, status)
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


@pytest.fixture(scope="module")
def pixels():
    """An image that is not its reference: negative, of the region's size."""
    return 255 - open_image(demo.SLIDE).read(*REGION)


@pytest.fixture(scope="module")
def tif(pixels, tmp_path_factory):
    path = tmp_path_factory.mktemp("view") / "out.tif"
    write_tif(path, pixels, json.dumps(SETTINGS))
    return path


@pytest.fixture(scope="module")
def server(tif):
    with serving(tif) as server:
        yield server


def test_page_asks_for_nothing_elsewhere_and_says_so(server):
    status, headers, body = ask(server, "/?grid=1")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert "unsafe" not in policy and "*" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    for name in ("page.js", "page.css", "openseadragon.js"):
        assert f'"{name}"'.encode() in body
        assert ask(server, "/" + name)[0] == 200
    assert b"http" not in body
    assert server.server_address[0] == "127.0.0.1"


def test_what_the_page_knows_comes_from_the_description(server):
    known = about(server)
    synthetic, reference = known["images"]
    assert known["title"] == "out.tif" and known["grid_title"] == "grid of 10 x 8 embeddings"
    assert known["settings"] == SETTINGS | {"seconds": "NaN"}
    assert synthetic["width_um"] == 300.0
    assert reference["width_um"] == pytest.approx(600 * 0.499)
    # 600 px are 9 cells of 64 and one flush with the end.
    assert synthetic["grid"]["x"] == [*(64 * cell / 600 for cell in range(9)), 536 / 600, 1.0]
    assert len(synthetic["grid"]["y"]) == 9 and reference["grid"] == synthetic["grid"]


@pytest.mark.parametrize("name", ["synthetic", "reference"])
def test_tiles_hold_the_pixels_of_the_image_and_of_the_region(server, pixels, name):
    """At full resolution every pixel is the file's own; at half the mean of four, about."""
    expected = pixels if name == "synthetic" else 255 - pixels
    status, headers, body = ask(server, f"/{name}.dzi")
    assert status == 200 and b'Width="600" Height="500"' in body and b'TileSize="254"' in body
    whole = np.zeros_like(expected)
    for row in range(2):
        for column in range(3):
            part = tile(server, f"/{name}_files/10/{column}_{row}.png")
            top, left = max(0, row * 254 - 1), max(0, column * 254 - 1)
            whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    np.testing.assert_array_equal(whole, expected)
    half = tile(server, f"/{name}_files/9/0_0.png").astype(float)
    mean = expected[:510, :510].reshape(-1, 2, 255, 2, 3).mean((1, 3))[:250]
    assert half.shape == (250, 255, 3) and np.abs(half - mean).mean() < 4


@pytest.mark.parametrize(
    "path",
    [
        "/synthetic_files/11/0_0.png",
        "/synthetic_files/10/3_0.png",
        "/synthetic_files/10/0_2.png",
        "/synthetic_files/10/-1_0.png",
        "/synthetic_files/10/0_0.jpeg",
        "/synthetic_files/999999999999/0_0.png",
        "/synthetic_files/10/0_0.png/",
        "/other_files/10/0_0.png",
        "/other.dzi",
        "/server.py",
        "/openseadragon.min.js",
        "/../view.py",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/synthetic_files/../../../etc/passwd",
        "/out.tif",
        "http://127.0.0.1/page.js",
        "/.",
    ],
)
def test_nothing_else_is_served(server, path):
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "127.0.0.1", "0.0.0.0:{port}"]
)
def test_only_this_machine_s_names_are_answered(server, host):
    """The name of another site that was made to point here gets no page and no tile."""
    port = server.server_address[1]
    for path in ("/", "/about.json", "/synthetic_files/10/0_0.png"):
        status, _, body = ask(server, path, Host=host.format(port=port))
        assert status == 403 and b"ssl_diffusion" not in body and b"PNG" not in body
    assert ask(server, "/", Host=f"localhost:{port}")[0] == 200


def test_head_has_no_body_and_nothing_is_written(server):
    with socket.create_connection(server.server_address, timeout=30) as connection:
        request = f"HEAD /synthetic_files/10/0_0.png HTTP/1.1\r\nHost: {server.hosts[0]}\r\n"
        connection.sendall(f"{request}Connection: close\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: " in answer and b"PNG" not in answer
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/", method)[0] == 501


def test_many_requests_at_once_give_the_same_tiles(server):
    paths = [
        f"/{name}_files/10/{column}_{row}.png"
        for name in ("synthetic", "reference")
        for column in range(3)
        for row in range(2)
    ]
    alone = [ask(server, path)[2] for path in paths]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda path: ask(server, path)[2], paths * 6))
    assert together == alone * 6


def test_region_and_reference_given_replace_the_recorded(tif, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = Image.fromarray(np.full((40, 60, 3), 7, np.uint8))
    plain.save(tmp_path / "plain.png", icc_profile=profile)
    with serving(tif, region=(0, 0, 300, 250)) as server:
        expected = open_image(demo.SLIDE).read(0, 0, 300, 250)
        np.testing.assert_array_equal(
            tile(server, "/reference_files/9/0_0.png"), expected[:250, :255]
        )
    with serving(tif, str(tmp_path / "plain.png"), (10, 20, 30, 20)) as server:
        assert about(server)["images"][1]["width_um"] is None
        assert (tile(server, "/reference_files/5/0_0.png") == 7).all()
        assert b"iCCP" not in ask(server, "/reference_files/5/0_0.png")[2]
    with pytest.raises(InputError, match="2000,0,512,512.*2220x2967 px at 0.499"):
        view.make_server(str(tif), None, (2000, 0, 512, 512), 0)


def test_region_counts_in_px_of_the_image():
    """As when it was embedded: 0.499 is 0.5, a finer reference is counted in its own pixels."""
    assert view.to_level_0((3, 5, 64, 32), 0.5, 0.499) == (3, 5, 64, 32)
    assert view.to_level_0((3, 5, 64, 32), 0.5, 0.25) == (6, 10, 128, 64)
    assert view.to_level_0((3, 5, 64, 32), None, 0.25) == (3, 5, 64, 32)


@pytest.mark.parametrize(
    "settings",
    [
        None,
        "no JSON",
        "[1, 2]",
        '{"reference": "gone.svs", "region": [0, 0, 64, 64], "mpp": "?", "rows": 2}',
        '{"reference": 5, "region": 7, "mpp": -1, "rows": 0, "cols": 1, "patch_px": 64}',
        '{"reference": "demo:cmu_small_region.svs", "region": [0, 0, 9999, 64]}',
    ],
)
def test_what_is_not_recorded_turns_features_off(settings, tmp_path):
    Image.new("RGB", (100, 80), "red").save(tmp_path / "image.png")
    if settings:
        (tmp_path / "image.json").write_text(settings)
    with serving(tmp_path / "image.png") as server:
        known = about(server)
        assert known["grid_title"] is None and len(known["images"]) == 1
        assert known["images"][0]["grid"] is None and known["images"][0]["width_um"] is None
        assert (tile(server, "/synthetic_files/7/0_0.png") == [255, 0, 0]).all()


@pytest.mark.parametrize("inside", [True, False])
def test_settings_in_a_png_or_beside_it_are_read(inside, pixels, tmp_path):
    settings, text = json.dumps(SETTINGS | {"grid_stride_px": 32}), PngImagePlugin.PngInfo()
    if inside:  # as generate writes it; what lies beside may be of another image of that name
        text.add_text("Description", settings)
    Image.fromarray(pixels).save(tmp_path / "image.png", pnginfo=text)
    (tmp_path / "image.json").write_text("{}" if inside else settings)
    with serving(tmp_path / "image.png") as server:
        known = about(server)
        assert len(known["images"]) == 2
        assert known["images"][0]["grid"]["x"][:3] == [0, 32 / 600, 64 / 600]


def test_one_large_level_gets_a_coarser_one_that_agrees(monkeypatch):
    monkeypatch.setattr(region_module, "LARGEST", 10_000)
    monkeypatch.setattr(region_module, "BLOCK", 256)  # several blocks, the last ones cut
    region = Region(open_slide(demo.SLIDE), 100, 200, 1000, 700)
    assert region.level_dimensions == ((1000, 700), (63, 44))
    assert [region.get_best_level_for_downsample(factor) for factor in (1, 15, 16, 99)] == [
        *(0, 0, 1, 1)
    ]
    small = np.asarray(region.read_region((320, 160), 1, (40, 30)).convert("RGB")).astype(int)
    expected = open_image(demo.SLIDE).read(420, 360, 640, 480)
    mean = expected.reshape(30, 16, 40, 16, 3).mean((1, 3))
    assert np.abs(small - mean).max() <= 1


@pytest.mark.parametrize(
    "arguments, phrases",
    [
        ([], ["no argument", "OUT.tif"]),
        (["a.tif", "b.tif"], ["a.tif", "expected one"]),
        (["none.tif"], ["no image or slide at none.tif"]),
        (["{tmp}/text.tif"], ["text.tif", "Pillow"]),
        (["out.zarr"], ["napari", ".tif"]),
        (["{tif}", "--reference=none.svs"], ["no image or slide at none.svs"]),
        (["{tif}", "--region=1,2,3"], ["--region=1,2,3", "x,y,width,height"]),
        (["{tif}", "--region=-1,0,64,64"], ["-1,0,64,64", "2220x2967"]),
        (["{tmp}/plain.png", "--region=0,0,64,64"], ["--reference"]),
        (["{tif}", "--port=70000"], ["port"]),
        (["{tif}", "--port={port}"], ["port {port}", "--port"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, phrases, tif, tmp_path, capsys):
    (tmp_path / "text.tif").write_text("no image")
    Image.new("RGB", (128, 128)).save(tmp_path / "plain.png")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.MonkeyPatch.context() as patch:
        places = {"tif": tif, "tmp": tmp_path, "port": taken.getsockname()[1]}
        patch.setattr(sys, "argv", ["view", *(word.format(**places) for word in arguments)])
        view.FLAGS.unparse_flags()
        with pytest.raises(SystemExit) as stopped:
            cli.run(view.main, view.FLAGS, "the image: OUT.tif")
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    for phrase in phrases:
        assert phrase.format(**places) in error, error


def test_command_prints_its_address_and_ends_with_the_interrupt(tif):
    # A shell that runs the tests in the background has them, and their children, ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = subprocess.Popen(
        [sys.executable, "-m", "ssl_diffusion.view", str(tif), "--port=0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    address = command.stdout.readline().split()[0]
    connection = HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=30)
    connection.request("GET", "/about.json")
    assert json.loads(connection.getresponse().read())["title"] == "out.tif"
    command.send_signal(signal.SIGINT)
    assert command.wait(30) == 0
    assert command.stderr.read() == ""
    connection.close()
