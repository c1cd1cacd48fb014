"""The page in a real browser, as a user has it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import psutil
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "scripts" / "studio.py"
PATIENCE = 240
"""Seconds for what takes one where nothing else runs."""


def found(*names):
    return next(filter(None, map(shutil.which, names)), None)


def wait_for(condition):
    """Waits until a function returns something, which is returned."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)
    return value


@pytest.fixture
def start(tmp_path):
    """Starts the command; returns its process and its address."""
    pytest.importorskip("gradio", reason="needs pip install -e '.[app]'")
    started = []

    def call(*settings):
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *settings, "port=0", "trainer=cpu"],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "temporary")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        line = process.stdout.readline()
        match = re.fullmatch(r"The studio is at (http://127\.0\.0\.1:\d+), on this .*\n", line)
        assert match, line + process.communicate(timeout=60)[1]
        return process, match[1]

    (tmp_path / "temporary").mkdir()
    yield call
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def browser(tmp_path):
    selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    binary = found("chromium", "chromium-browser", "google-chrome")
    driver = found("chromedriver")
    if not binary or not driver:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--window-size=1500,1300", f"--user-data-dir={tmp_path / 'browser'}"),
    ):
        options.add_argument(argument)
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(tmp_path / "downloads")}
    )
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = selenium.chrome.service.Service(driver)
    driver = selenium.Chrome(options=options, service=service)
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


class Page:
    """What a user does in the page, and sees."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)

    def one(self, selector):
        return wait_for(lambda: next(iter(self.all(selector)), None))

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def text(self, selector):
        script = "return document.querySelector(arguments[0])?.innerText"
        return self.browser.execute_script(script, selector) or ""

    def click(self, selector):
        element = self.one(selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def pixels(self, selector):
        """The bytes of a picture as the browser has fetched it."""
        script = """
            const [address, done] = arguments;
            fetch(address).then(answer => answer.arrayBuffer()).then(content => {
                done([...new Uint8Array(content)]);
            });
        """
        address = self.one(f"{selector} img").get_attribute("src")
        return bytes(self.browser.execute_async_script(script, address))

    def generated(self, act):
        """The picture once it has been made anew by an act of the user."""
        before = self.shown()
        act()
        wait_for(lambda: self.shown() != before)
        return self.pixels("#image")

    def shown(self):
        """What tells one result from another."""
        return self.one("#image img").get_attribute("src"), self.text("#agreement table")

    def requests(self):
        """Hosts that the browser has sent anything to for the page."""
        events = (json.loads(e["message"])["message"] for e in self.browser.get_log("performance"))
        sent = (e["params"] for e in events if e["method"] == "Network.requestWillBeSent")
        parts = (urlsplit(params["request"]["url"]) for params in sent)
        return {part.netloc for part in parts if part.scheme in ("http", "https", "ws", "wss")}


def connections(process):
    """Where a process and its children listen, and where else they are connected to."""
    family = [process, *process.children(recursive=True)]
    found = [c for one in family for c in one.net_connections() if c.laddr]
    listening = {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}
    return listening, {c.raddr.ip for c in found if c.raddr}


def test_a_user_draws_masks_sees_images_and_drops_pairs(
    start, browser, trained, segmenter, pairs, tmp_path
):
    from selenium.webdriver import ActionChains, Keys

    data, run = trained
    places = (f"gen_ckpt={run / 'G_e002.pt'}", f"data_root={data}", f"save_dir={pairs}")
    process, address = start(*places, f"segmenter_ckpt={segmenter()}")
    page = Page(browser, address)
    page.one("#image img")
    wait_for(lambda: "mIoU" in page.text("#agreement"))
    first = page.pixels("#image")

    def set_noise(number):
        field = page.one("#noise input")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(number))
        page.click("#generate")

    # The image is the noise's.
    other = page.generated(lambda: set_noise(1))
    assert other != first
    assert page.generated(lambda: set_noise(0)) == first

    # Another tile's mask.
    def choose_tile():
        page.click("#tile input")
        field = page.one("#tile input")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys("train_003", Keys.ENTER)

    assert page.generated(choose_tile) != first
    assert page.one("#tile input").get_attribute("value") == "train_003"

    # A stroke of the brush's first colour, which is that of the first class.
    def draw():
        canvas = page.one("#editor canvas")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        stroke = ActionChains(browser).move_to_element_with_offset(canvas, -60, -60)
        stroke.click_and_hold().move_by_offset(120, 0).move_by_offset(0, 120).release().perform()
        page.click("#generate")

    def share():
        return float(re.search(r"Background\s+([\d.]+)%", page.text("#agreement table"))[1])

    before_drawing = share()
    page.generated(draw)
    assert before_drawing < share() < 100

    # What is downloaded is a pair as generate writes it.
    for button in ("#save_i", "#save_m"):
        page.click(button)
    files = wait_for(
        lambda: (
            len(got := sorted((tmp_path / "downloads").glob("pair_*"))) == 2
            and not any(path.suffix == ".crdownload" for path in got)
            and got
        )
    )
    assert [re.sub(r"\d{5}", "#", path.name) for path in files] == [
        "pair_#_img.jpg",
        "pair_#_mask.png",
    ]
    with Image.open(files[1]) as mask:
        pink = (np.asarray(mask) == (250, 62, 119)).all(-1).mean()
    assert abs(100 * pink - share()) < 0.06

    # One class.
    page.generated(lambda: page.click("#fill"))
    assert share() == 100

    # The worst pair is dropped, in the manifest alone, and taken back.
    before = {path.name: path.read_bytes() for path in pairs.iterdir()}
    next(tab for tab in page.all("button[role='tab']") if tab.text == "Pairs").click()
    wait_for(lambda: "6 pairs kept, 0 dropped by hand" in page.text("#summary"))
    wait_for(lambda: len(page.all("#gallery button.thumbnail-item")) == 6)
    page.all("#gallery button.thumbnail-item")[0].click()
    wait_for(lambda: "pair_00002, kept, score 25.0 %" in page.text("#about"))
    page.click("#drop")
    wait_for(lambda: "5 pairs kept, 1 dropped by hand" in page.text("#summary"))
    listed = [json.loads(line) for line in (pairs / "manifest.jsonl").read_text().splitlines()]
    assert [line["index"] for line in listed if not line["kept"]] == [2]
    assert listed[2]["why"] == "dropped by hand"
    wait_for(lambda: "dropped by hand" in page.text("#about"))
    page.click("#back")
    wait_for(lambda: "6 pairs kept, 0 dropped by hand" in page.text("#summary"))
    after = {path.name: path.read_bytes() for path in pairs.iterdir() if path.name != ".lock"}
    assert after == before

    # Nothing came from, or went, elsewhere.
    host = urlsplit(address).netloc
    assert page.requests() == {host}
    own = psutil.Process(process.pid)
    assert connections(own) == ({"127.0.0.1"}, {"127.0.0.1"})
    assert own.children(recursive=True) == []
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=PATIENCE) == ("", "error: interrupted.\n")
    assert process.returncode == 130
    assert not list((tmp_path / "temporary").glob("geoseg_gan_*"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_it_in_one_line(start, pairs, number, code):
    process, address = start(f"save_dir={pairs}")
    urlopen(address).close()  # it has started by then
    process.send_signal(number)
    out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, errors.count("\n")) == (code, "", 1)
    assert errors.startswith("error: ")


def test_what_the_studio_did_not_make_is_not_served(start, pairs, tmp_path):
    (tmp_path / "private.txt").write_text("secret")
    _, address = start(f"save_dir={pairs}")
    for path in (tmp_path / "private.txt", pairs / "generation.json", "/etc/hostname"):
        with pytest.raises(HTTPError) as caught:
            urlopen(f"{address}/gradio_api/file={path}")
        assert caught.value.code == 403
        caught.value.close()
