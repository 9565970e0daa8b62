"""`imgclf` in a process of its own, forked from a server: importable there by name, as a test module is not."""

import os
import signal
import sys

import pytest

from imgclf.cli import main
from imgclf.training import checkpoint
from support.failing_disk import Disk


def command(args, folder, cache, kill_at=0):
    """`imgclf args` in a process group of its own, in `folder`; what it prints goes to `folder/log`."""
    os.setsid()
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(IMGCLF_CACHE=cache, HF_HUB_OFFLINE="1")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["imgclf", *args]
    with pytest.MonkeyPatch.context() as patch:
        if kill_at:
            patch.setattr(checkpoint, "MAX_SHARE", float("inf"))
            Disk(patch, "runs", kill_at, lambda path: os.kill(os.getpid(), signal.SIGKILL))
        main()
