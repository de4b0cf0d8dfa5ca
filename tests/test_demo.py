"""The page, in a real browser."""

import json
import socket
import urllib.error
import urllib.request
from pathlib import PureWindowsPath

import numpy as np
import pytest
import soundfile

from demo_browser import CHROMIUM, SOUNDS, open_page, serve, tag
from hf_clap import demo
from hf_clap.waveform import AudioError

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; run `bash .ci/setup dev`")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    (folder / "secret.txt").write_text("secret")
    with serve(folder) as address:
        yield address


def test_tag_and_search(address, tiny_tagger, tmp_path):
    sound, rate = soundfile.read(SOUNDS / "siren.flac", dtype="float32")
    soundfile.write(tmp_path / "sound.wav", sound, rate, subtype="FLOAT")
    labels = ["rain", "siren", "church bell"]
    expected = {row["label"]: f"{row['score']:.0%}" for row in tiny_tagger(SOUNDS / "siren.flac", labels)}
    (tmp_path / "broken.wav").write_bytes(b"RIFF" + bytes(26))
    with open_page(address) as page:
        tag(page, tmp_path / "sound.wav", ", ".join(labels))
        bars = page.get_by_test_id("label-output-value")
        bars.wait_for()
        assert bars.inner_text().strip() == "siren"
        text = page.locator("body").inner_text()
        for label, percent in expected.items():
            assert f"{label}\n{percent}" in text
        page.screenshot(path=tmp_path / "page.png")

        page.get_by_label("Labels, separated by commas").fill("rain, rain")
        page.get_by_role("button", name="Tag", exact=True).click()
        page.get_by_text("Label 'rain' is there twice; pass each label once.").wait_for()

    with open_page(address) as page:
        tag(page, tmp_path / "broken.wav", ", ".join(labels))
        page.get_by_text("broken.wav is not an audio file that can be read; convert it to WAV or FLAC.").wait_for()
        assert "Traceback" not in page.locator("body").inner_text()

        page.get_by_role("tab", name="Search").click()
        page.get_by_label("Search for").fill("an ambulance with its siren on")
        page.get_by_role("button", name="Search", exact=True).click()
        page.get_by_text("siren.flac").last.wait_for()
        page.get_by_text("siren.flac").last.click()
        page.get_by_text("0:04").wait_for()  # the moment's length, in its player
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", ["/etc/passwd", "secret.txt", "{cwd}/secret.txt", "../secret.txt", "sounds.parquet"])
def test_no_file_of_the_server_can_be_read(address, path, tmp_path_factory):
    folder = next(tmp_path_factory.getbasetemp().glob("demo*"))
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/gradio_api/file={path.format(cwd=folder)}")
    assert refused.value.code in (403, 404)


@pytest.mark.parametrize("path", ["/etc/passwd", str(SOUNDS / "siren.flac"), "http://127.0.0.1:1/x.wav"])
def test_nobody_makes_the_server_open_a_file(address, path):
    sound = {"path": path, "meta": {"_type": "gradio.FileData"}}
    call = json.dumps({"data": [sound, "rain, siren", False]}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/gradio_api/call/tag", call, headers)
    try:
        event = json.load(urllib.request.urlopen(request))["event_id"]
        answer = urllib.request.urlopen(f"{address}/gradio_api/call/tag/{event}").read().decode()
    except urllib.error.HTTPError as error:
        answer = f"event: error {error.code}"
    assert "event: error" in answer
    assert "siren" not in answer


def test_what_is_too_long_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "MAX_LENGTH_S", 60)
    soundfile.write(tmp_path / "long.wav", np.zeros(61 * 8000), 8000)
    with pytest.raises(AudioError, match=r"^The sound is longer than 1 minutes; cut it.$"):
        demo._read(str(tmp_path / "long.wav"), 16000)
    soundfile.write(tmp_path / "short.wav", np.zeros(59 * 8000), 8000)
    assert demo._read(str(tmp_path / "short.wav"), 16000).shape == (59 * 16000,)


def test_labels_that_are_too_many_or_too_long_are_refused():
    with pytest.raises(ValueError, match=r"^There are more than 100 labels; leave some out.$"):
        demo._check_labels("x," * 100)
    with pytest.raises(ValueError, match=r"^A label is longer than 200 characters; shorten it.$"):
        demo._check_labels("rain, " + 100 * "x " + "x")
    demo._check_labels(", ".join(["x" * 200] * 100))


def test_what_is_too_large_is_refused(address):
    boundary = "x"
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'.encode()
    body += bytes(21 * 2**20) + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", body, headers))
    assert refused.value.code == 413


def test_a_port_in_use_is_one_sentence(tiny_tagger):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=rf"^The page cannot be served at 127.0.0.1:{port} \(.*\); choose another port.$"
        ):
            demo.launch_demo(demo.build_demo(tiny_tagger), port=port)


def test_a_name_is_not_taken_for_html():
    assert demo._shown("<b>1</b> isn't there").message == "&lt;b&gt;1&lt;/b&gt; isn't there"


def test_a_moment_outside_of_the_library_is_not_played(tmp_path, monkeypatch):
    for path in ("/etc/passwd", "../x.wav", "a/../../x.wav"):
        assert demo._inside(tmp_path, path) is None
    with monkeypatch.context() as on_windows:
        on_windows.setattr(demo, "PurePath", PureWindowsPath)
        for path in ("C:/x.wav", "C:x.wav", r"..\x.wav", r"\\server\share\x.wav", "/x.wav"):
            assert demo._inside(tmp_path, path) is None
    (tmp_path / "a.wav").touch()
    assert demo._inside(tmp_path, "a.wav") == tmp_path / "a.wav"
