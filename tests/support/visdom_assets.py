"""Get Visdom's browser files from npm, where its server can't: python tests/support/visdom_assets.py [FOLDER]

Visdom's server downloads scripts, styles and fonts at its first start, and ends where that is not possible. All of them
are in npm packages; this makes the very function that would download them read them from there, so that their names and
versions are those of the Visdom that is installed. They go into FOLDER/static, or without FOLDER into the installed
Visdom, whose server then starts without a network.
"""

import io
import re
import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from urllib import request

# What an address ends in → the npm package with its version, and the file in it.
PLACES = (
    (r"/plotly-([\d.]+)\.min\.js$", r"plotly.js-dist-min@\1", "plotly.min.js"),
    (r"/d3\.v(\d+)\.min\.js$", r"d3@\1", "d3.min.js"),
    (r"/d3-selection-multi\.v(\d+)\.js$", r"d3-selection-multi@\1", "build/d3-selection-multi.js"),
    (r"/mathjax/([\d.]+)/([^?]+)(?:\?.*)?$", r"mathjax@\1", r"\2"),
    (r"^https?://[^/]+/([^@/]+@[\d.]+)$", r"\1", "index.js"),
    (r"^https?://[^/]+/([^@/]+@[\d.]+)/([^?#]+)(?:[?#].*)?$", r"\1", r"\2"),
)


@cache
def package(name: str) -> dict[str, bytes]:
    """The files of an npm package, NAME@VERSION, by their paths in it."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).iterdir()
        with tarfile.open(archive) as files:
            read = {member.name.partition("/")[2]: files.extractfile(member) for member in files if member.isfile()}
            return {path: file.read() for path, file in read.items() if file is not None}


def content(url: str) -> bytes:
    """What there would be at an address."""
    for pattern, name, path in PLACES:
        match = re.search(pattern, url)
        if match:
            return package(match.expand(name))[match.expand(path)]
    raise LookupError(f"no npm package is known for {url}; add it to PLACES")


def prepare(folder: Path | None = None) -> None:
    """Write Visdom's browser files below a folder, or where the installed Visdom looks for them."""
    import requests
    from visdom.server import build

    opener = SimpleNamespace(open=lambda asked: io.BytesIO(content(asked.full_url)))
    build.request = SimpleNamespace(
        Request=request.Request,
        BaseHandler=request.BaseHandler,
        ProxyHandler=request.ProxyHandler,
        build_opener=lambda handler: opener,
        install_opener=lambda opener: None,
    )
    requests.get = lambda url, **options: SimpleNamespace(content=content(url))
    build.download_scripts(install_dir=None if folder is None else str(folder))


if __name__ == "__main__":
    prepare(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
