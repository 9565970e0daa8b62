"""Tars of tiny images, made for each test."""

import io
import tarfile

from support.photos import color_image


def encoded(name="red", index=0, kind="PNG"):
    buffer = io.BytesIO()
    color_image(name, index, (6, 8)).save(buffer, kind)
    return buffer.getvalue()


def make_tar(members, **options):
    """A tar of (name, bytes) or of finished `TarInfo` without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()
