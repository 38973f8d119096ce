"""A headless Chromium, driven through its DevTools protocol: what a page does there."""

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Asked in the page, once it stands: pictures, how far it sticks out, what is written.
_LOOK = """(async () => {
  const pictures = [...document.images];
  pictures.forEach(one => one.loading = "eager");
  await Promise.all(pictures.map(one => one.decode().catch(() => 0)));
  return {
    title: document.title,
    width: document.documentElement.scrollWidth,
    pictures: pictures.map(one => [one.getAttribute("src"), one.naturalWidth,
                                   one.getBoundingClientRect().width, one.alt]),
    text: document.body.innerText,
  };
})()"""


def find_browser():
    """The path of a Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a headless browser; `faults` fills with what its console tells.

    Every wait ends after `timeout` seconds with an error.
    """

    def __init__(self, program, folder, timeout=30):
        self.folder, self.timeout = Path(folder), timeout
        self.number, self.faults, self.requests, self.loaded = 0, [], [], False
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        flags += ["--disable-dev-shm-usage", "--remote-debugging-port=0"]
        # Its own calls home are no business of the page's.
        flags += ["--disable-background-networking", "--disable-component-update"]
        self.process = subprocess.Popen(
            [program, *flags, f"--user-data-dir={self.folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port, path = self._port()
            self.socket = self._connect(f"ws://127.0.0.1:{port}{path}")
            (target,) = [
                t
                for t in self.ask("Target.getTargets")["targetInfos"]
                if t["type"] == "page"
            ]
            self.socket.close()
            page = f"ws://127.0.0.1:{port}/devtools/page/{target['targetId']}"
            self.socket = self._connect(page)
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def _port(self):
        file, end = self.folder / "DevToolsActivePort", time.monotonic() + self.timeout
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the browser ended with {self.process.returncode}")
            if file.exists() and len(lines := file.read_text().split()) == 2:
                return lines
            time.sleep(0.05)
        raise TimeoutError("the browser opened no port")

    def _connect(self, url):
        return websocket.create_connection(
            url, timeout=self.timeout, suppress_origin=True
        )

    def ask(self, method, **parameters):
        """Send one command and return its answer; what comes meanwhile is noted."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.socket.send(json.dumps(message))
        while (answer := self._next()).get("id") != self.number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self):
        message = json.loads(self.socket.recv())
        told = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self.loaded = True
            case "Runtime.exceptionThrown":
                self.faults.append(told["exceptionDetails"])
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning"):
                self.faults.append(told["args"])
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.faults.append(told["entry"])
            case "Network.loadingFailed" if not told.get("canceled"):
                self.faults.append(told)
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
        return message

    def open(self, url, width, height=900):
        """Load a page in a window of that width, and look at it once it stands."""
        self.faults, self.requests, self.loaded = [], [], False
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        if told := self.ask("Page.navigate", url=url).get("errorText"):
            raise RuntimeError(f"{url}: {told}")
        while not self.loaded:
            self._next()
        return self.run(_LOOK)

    def run(self, script):
        """Evaluate JavaScript in the page; a promise is waited for."""
        answer = self.ask(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def picture(self, path, **clip):
        """Save what the window shows, or the part `clip` of the page, as a PNG."""
        more = {"clip": {"scale": 1, **clip}} if clip else {}
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, **more)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
