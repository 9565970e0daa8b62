"""Files of published weights: from the local caches first, then from the network, if that answers quickly.

The model hub's own client retries for most of a minute before it admits that there is no network, and longer for a host
that hangs. So the host is asked once, with a deadline, and the client only runs when it has answered.
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from imgclf.core.errors import ModelFileError

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
DEADLINE = 2.0
METADATA_DEADLINE = 5.0


class Unavailable(ModelFileError):
    """Published weights that can't be had here and now: no network, no such file, or a failed download."""


def hub_file(repo: str, names: tuple[str, ...] = HUB_FILES) -> Path:
    """The first of the files `names` in the Hugging Face repository `repo` (OWNER/NAME, or OWNER/NAME@REVISION).

    Raises `Unavailable`. Heeds HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE, as the hub's own client does.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cached = cached_hub_file(repo, names)
    if cached is not None:
        return cached
    repo, _, tag = repo.partition("@")
    revision = tag or None
    if constants.HF_HUB_OFFLINE:
        raise Unavailable(f"{repo} is not in the hub's cache, and HF_HUB_OFFLINE forbids downloading it")
    _require_answer(constants.ENDPOINT)
    for name in names:
        try:
            _require_metadata(repo, name, revision)
            return Path(hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError as error:  # an EntryNotFoundError as well, but it means that the network failed
            raise Unavailable(f"{repo} can't be downloaded: {error}") from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # the client's errors share no root: OSError, httpx, its own
            raise Unavailable(f"{repo} can't be downloaded: {error}") from error
    raise Unavailable(f"{repo} has none of the files {', '.join(names)}")


def cached_hub_file(repo: str, names: tuple[str, ...] = HUB_FILES) -> Path | None:
    """The file that `hub_file` finds without a network, or None."""
    from huggingface_hub import try_to_load_from_cache

    repo, _, tag = repo.partition("@")
    found = (try_to_load_from_cache(repo, name, revision=tag or None) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def url_file(url: str) -> Path:
    """The file that `url` names, kept in torch hub's cache of checkpoints, where torchvision looks for it.

    A hash in the file's name (`resnet18-f37072fd.pth`) is verified. Raises `Unavailable`.
    """
    import torch

    target = url_place(url)
    if target.is_file():
        return target
    _require_answer(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    checksum = re.search(r"-([a-f0-9]{8,})\.", target.name)
    try:
        torch.hub.download_url_to_file(url, str(target), checksum[1] if checksum else None)
    except Exception as error:  # network errors are OSError, a wrong checksum is RuntimeError, a cut one HTTPException
        raise Unavailable(f"{url} can't be downloaded: {error}") from error
    return target


def url_place(url: str) -> Path:
    """Where `url_file` keeps its file."""
    import torch

    return Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)


def _require_metadata(repo: str, name: str, revision: str | None) -> None:
    """Ask the hub once for a file, since the client would ask a host that hangs again and again.

    Heeds HF_HUB_ETAG_TIMEOUT. An answer that is an error is left to the client, which knows what is worth a retry.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    chosen = constants.HF_HUB_ETAG_TIMEOUT
    seconds = METADATA_DEADLINE if chosen == constants.DEFAULT_ETAG_TIMEOUT else chosen
    with suppress(HfHubHTTPError):
        get_hf_file_metadata(hf_hub_url(repo, name, revision=revision), timeout=seconds)


def _require_answer(url: str) -> None:
    if not answers(url):
        host = urlsplit(url).hostname
        raise Unavailable(
            f"{host} did not answer within {DEADLINE:g} s, or only with a server error, and the weights are not "
            "in the local cache"
        )


def answers(url: str, seconds: float = DEADLINE) -> bool:
    """Whether the host of `url` answers an HTTP request, through the proxy that the environment names.

    A server error (5xx) is no answer: a gateway gives it for a host that it can't reach, and the client would retry.
    Takes no longer than `seconds` plus a moment: a thread does it, since a name look-up can't be given a deadline.
    """
    import requests

    parts, answered = urlsplit(url), threading.Event()

    def ask() -> None:
        with suppress(Exception):
            if requests.head(f"{parts.scheme}://{parts.netloc}/", timeout=seconds).status_code < 500:
                answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 0.2)
    return answered.is_set()
