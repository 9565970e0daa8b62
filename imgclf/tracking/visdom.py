"""Visdom: lines that grow while training runs, pictures, the confusion matrix; an environment a run."""

from __future__ import annotations

import html
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from imgclf.core.errors import ConfigError, MissingExtra
from imgclf.core.results import EpochRecord, Evaluation
from imgclf.tracking.backend import Backend, Pictures, Session, shown_confusion

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PORT = 8097
PATIENCE = 5.0  # seconds to wait for an answer
MOST_POINTS = 500  # of a line within epochs: more could not be told apart
MOST_COUNTED = 20  # classes of a confusion matrix whose counts can be read
WINDOWS = ("loss", "accuracy")
LINES = ("train", "valid", "train, by steps")
Line = list[tuple[float, float]]


class Visdom(Backend):
    """Draws on a Visdom server: at `address`, else at VISDOM_SERVER and VISDOM_PORT, else on this machine.

    Every window is sent whole, and by its name: a run that is resumed goes on in it, also on a server that is new.
    """

    name = "visdom"

    def __init__(self, address: str | None = None) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its own invalid escapes and deprecated imports
                import visdom
        except ImportError:
            raise MissingExtra("visdom", "Visdom windows") from None
        logging.getLogger(visdom.__name__).setLevel(logging.CRITICAL)
        self._server, self._port, self._base = _address(address)
        self._vis: Any = None

    def where(self, session: Session) -> str:
        """The server and the environment."""
        return f"{self._server}:{self._port}{self._base}, environment {session.name}"

    def open(self, session: Session) -> None:
        """The settings as text."""
        self._lines: dict[str, dict[str, Line]] = {window: {line: [] for line in LINES} for window in WINDOWS}
        self._drawn = 0
        options = {"server": self._server, "port": self._port, "base_url": self._base or "/", "env": session.name}
        self._vis = _client()(**options, raise_exceptions=True, use_incoming_socket=False)
        cells = ((html.escape(str(key)), html.escape(str(value))) for key, value in session.settings.items())
        rows = "".join(f"<tr><td>{key}</td><td><b>{value}</b></td></tr>" for key, value in cells)
        self._vis.text(
            f"<table cellpadding=3>{rows}</table>", win="settings", opts={"title": "Settings", "height": 400}
        )

    def start(self, history: Sequence[EpochRecord]) -> None:
        """Draw what was before."""
        for record in history:
            self.epoch(record)

    def baseline(self, result: Evaluation) -> None:
        """Epoch 0."""
        for window in WINDOWS:
            self._lines[window]["valid"].append((0, getattr(result, window)))

    def step(self, epoch: float, number: int, loss: float, lr: float) -> None:
        """A line within the epochs."""
        line = self._lines["loss"][LINES[2]]
        line.append((epoch, loss))
        if len(line) > MOST_POINTS:
            line[:] = [((x + u) / 2, (y + v) / 2) for (x, y), (u, v) in zip(line[::2], line[1::2], strict=False)]

    def epoch(self, record: EpochRecord) -> None:
        """One more point of each line."""
        for window in WINDOWS:
            for part in ("train", "valid"):
                value = getattr(record, f"{part}_{window}")
                if value is not None:
                    self._lines[window][part].append((record.epoch, value))

    def flush(self) -> None:
        """Draw the lines again, where they have grown."""
        points = sum(len(line) for lines in self._lines.values() for line in lines.values())
        if points == self._drawn:
            return
        for window, lines in self._lines.items():
            begun = {name: line for name, line in lines.items() if line}
            if begun:
                self._draw(window, begun)
        self._drawn = points

    def _draw(self, window: str, lines: dict[str, Line]) -> None:
        import numpy as np

        longest = max(map(len, lines.values()))
        padded = [[*line, *[(math.nan, math.nan)] * (longest - len(line))] for line in lines.values()]
        x, y = np.array(padded, dtype=np.float64).transpose(2, 1, 0)
        options = {
            "title": window.capitalize(),
            "legend": list(lines),
            "xlabel": "epoch",
            "ylabel": window,
            "markers": longest <= 30,
            "markersize": 5,
        }
        self._vis.line(y, x, win=window, opts=options)

    def batch(self, pictures: Pictures) -> None:
        """One picture of all."""
        self._picture("batch", pictures)

    def tested(self, part: str, result: Evaluation, pictures: Pictures) -> None:
        """The images with their answers, and the confusion matrix; those of test take the place of those of valid."""
        self._picture("sample", pictures)
        names, counts, note = shown_confusion(result)
        axes = {"type": "category", "automargin": True}
        layout: dict[str, Any] = {
            "xaxis": {"title": "predicted", **axes},
            "yaxis": {"title": "true", "autorange": "reversed", **axes},
        }
        if len(names) <= MOST_COUNTED:
            layout["annotations"] = list(_numbers(counts))
        options = {
            "title": f"Confusion matrix, {part} {result.accuracy:.1%}{note}",
            "columnnames": list(names),
            "rownames": list(names),
            "layoutopts": {"plotly": layout},
        }
        self._vis.heatmap(counts, win="confusion", opts=options)

    def _picture(self, window: str, pictures: Pictures) -> None:
        self._vis.image(pictures.draw().transpose(2, 0, 1), win=window, opts={"title": pictures.title})

    def close(self, ended: str) -> None:
        """Have the server keep it."""
        self._vis.save([self._vis.env])


def _address(given: str | None) -> tuple[str, int, str]:
    """The server as http://host, its port, and the path below which it answers, "" for none."""
    server = given or os.environ.get("VISDOM_SERVER") or "localhost"
    parts = urlsplit(server if "://" in server else f"http://{server}")
    try:
        port = parts.port or int(os.environ.get("VISDOM_PORT") or PORT)
    except ValueError:
        raise ConfigError(
            f"visdom is to be at {server!r}, port {os.environ.get('VISDOM_PORT', PORT)}; expected http://host:port"
        ) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"visdom is to be at {server!r}; expected http://host:port")
    return f"{parts.scheme}://{parts.hostname}", port, parts.path.rstrip("/")


def _numbers(counts: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """The counts of a heat map as texts on it, dark where it is bright."""
    bright = counts.max() / 2
    for row, line in enumerate(counts.tolist()):
        for column, count in enumerate(line):
            color = "black" if count > bright else "white"
            yield {"x": column, "y": row, "text": str(count), "showarrow": False, "font": {"color": color}}


def _client() -> Any:
    """Visdom's client with an end to its patience, and with an answer that is no answer told as what it is."""
    import requests
    import visdom

    class Client(visdom.Visdom):  # type: ignore[misc]
        def _handle_post(self, url: str, data: Any = None) -> str:
            try:
                answer = self.session.post(url, data=data or {}, timeout=PATIENCE)
            except requests.Timeout:
                raise ConnectionError(f"the server at {self.server}:{self.port} does not answer") from None
            except requests.RequestException:
                raise ConnectionError(f"there is no server at {self.server}:{self.port}; `visdom` starts one") from None
            if not answer.ok:
                raise ConnectionError(f"the server at {self.server}:{self.port} says {answer.status_code}")
            return str(answer.text)

    return Client
