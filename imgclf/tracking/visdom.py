"""Visdom: lines that grow during training, pictures, the confusion matrix; one environment per run."""

from __future__ import annotations

import html
import logging
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from imgclf.core.errors import ConfigError
from imgclf.core.results import EpochRecord, Evaluation
from imgclf.tracking.backend import MetricLogger, Pictures, Session, import_package, readable_confusion

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_PORT = 8097
TIMEOUT_SECONDS = 5.0
MAX_STEP_POINTS = 500  # in the line of the steps: more could not be seen
MAX_CLASSES_WITH_COUNTS = 20  # in a confusion matrix whose counts can be read
WINDOWS = ("loss", "accuracy")
LINES = ("train", "valid", STEP_LINE := "train, by steps")
Line = list[tuple[float, float]]


class Visdom(MetricLogger):
    """Draws on a Visdom server: at `address`, by default at VISDOM_SERVER and VISDOM_PORT or on this machine.

    Every window is sent as a whole and under the same name, so that a resumed run continues in it, even on a new
    server.
    """

    name = "visdom"

    def __init__(self, address: str | None = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has invalid escapes and deprecated imports
            import_package("visdom", "visdom", "Visdom windows")
        logging.getLogger("visdom").setLevel(logging.CRITICAL)
        self._server, self._port, self._base = _address(address)
        self._vis: Any = None

    def location(self, session: Session) -> str:
        """The server and the environment."""
        return f"{self._server}:{self._port}{self._base}, environment {session.name}"

    def open(self, session: Session) -> None:
        """Show the settings as a table."""
        self._lines: dict[str, dict[str, Line]] = {window: defaultdict(list) for window in WINDOWS}
        self._points_drawn = 0
        options = {"server": self._server, "port": self._port, "base_url": self._base or "/", "env": session.name}
        self._vis = _client_class()(**options, raise_exceptions=True, use_incoming_socket=False)
        cells = ((html.escape(str(key)), html.escape(str(value))) for key, value in session.settings.items())
        rows = "".join(f"<tr><td>{key}</td><td><b>{value}</b></td></tr>" for key, value in cells)
        self._vis.text(
            f"<table cellpadding=3>{rows}</table>", win="settings", opts={"title": "Settings", "height": 400}
        )

    def start(self, history: Sequence[EpochRecord]) -> None:
        """Draw the epochs before a resume again."""
        for record in history:
            self.epoch(record)

    def step(self, epoch: float, number: int, loss: float, lr: float) -> None:
        """A point of the line within epochs; a line that becomes too long is halved."""
        line = self._lines["loss"][STEP_LINE]
        line.append((epoch, loss))
        if len(line) > MAX_STEP_POINTS:
            line[:] = [((x + u) / 2, (y + v) / 2) for (x, y), (u, v) in zip(line[::2], line[1::2], strict=False)]

    def log_metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """One more point of each line."""
        for name, value in values.items():
            part, _, window = name.rpartition("_")
            if window in WINDOWS:
                self._lines[window][part].append((epoch, value))

    def flush(self) -> None:
        """Draw the lines again, where they have grown."""
        points = sum(len(line) for lines in self._lines.values() for line in lines.values())
        if points != self._points_drawn:
            for window, lines in self._lines.items():
                if lines:
                    self._draw(window, {name: lines[name] for name in LINES if name in lines})
            self._points_drawn = points

    def _draw(self, window: str, lines: Mapping[str, Line]) -> None:
        import numpy as np

        padded = list(zip_longest(*lines.values(), fillvalue=(math.nan, math.nan)))
        x, y = np.array(padded, dtype=np.float64).transpose(2, 0, 1)
        options = {
            "title": window.capitalize(),
            "legend": list(lines),
            "xlabel": "epoch",
            "ylabel": window,
            "markers": len(x) <= 30,
            "markersize": 5,
        }
        self._vis.line(y, x, win=window, opts=options)

    def batch(self, pictures: Pictures) -> None:
        """Show them in a window; images of test replace those of valid."""
        window = pictures.name.rpartition("-")[2]
        self._vis.image(pictures.draw().transpose(2, 0, 1), win=window, opts={"title": pictures.title})

    def tested(self, part: str, result: Evaluation, pictures: Pictures) -> None:
        """Show the images with their predictions and the confusion matrix; test replaces valid."""
        self.batch(pictures)
        names, counts, note = readable_confusion(result)
        axes = {"type": "category", "automargin": True}
        layout: dict[str, Any] = {
            "xaxis": {"title": "predicted", **axes},
            "yaxis": {"title": "true", "autorange": "reversed", **axes},
        }
        if len(names) <= MAX_CLASSES_WITH_COUNTS:
            layout["annotations"] = list(_numbers(counts))
        options = {
            "title": f"Confusion matrix, {part} {result.accuracy:.1%}{note}",
            "columnnames": list(names),
            "rownames": list(names),
            "layoutopts": {"plotly": layout},
        }
        self._vis.heatmap(counts, win="confusion", opts=options)

    def close(self, ended: str) -> None:
        """Have the server save the environment."""
        self._vis.save([self._vis.env])


def _address(given: str | None) -> tuple[str, int, str]:
    """The server as http://host, its port, and the path of its page, "" for none."""
    server = given or os.environ.get("VISDOM_SERVER") or "localhost"
    port = os.environ.get("VISDOM_PORT") or DEFAULT_PORT
    parts = urlsplit(server if "://" in server else f"http://{server}")
    try:
        found = f"{parts.scheme}://{parts.hostname}", parts.port or int(port), parts.path.rstrip("/")
    except ValueError:
        raise ConfigError(f"visdom can't be at {server!r}, port {port}; expected http://host:port") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"visdom can't be at {server!r}; expected http://host:port")
    return found


def _numbers(counts: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """The counts of a heat map as labels, dark on bright cells."""
    bright = counts.max() / 2
    for row, line in enumerate(counts.tolist()):
        for column, count in enumerate(line):
            color = "black" if count > bright else "white"
            yield {"x": column, "y": row, "text": str(count), "showarrow": False, "font": {"color": color}}


def _client_class() -> Any:
    """Visdom's client with a timeout, and with an exception where the server reports an error."""
    import requests
    import visdom

    class Client(visdom.Visdom):  # type: ignore[misc]
        def _handle_post(self, url: str, data: Any = None) -> str:
            try:
                response = self.session.post(url, data=data or {}, timeout=TIMEOUT_SECONDS)
            except requests.Timeout:
                raise ConnectionError(f"the server at {self.server}:{self.port} does not respond") from None
            except requests.RequestException:
                raise ConnectionError(f"no server at {self.server}:{self.port}; start one with `visdom`") from None
            if not response.ok:
                raise ConnectionError(f"the server at {self.server}:{self.port} returned status {response.status_code}")
            return str(response.text)

    return Client
