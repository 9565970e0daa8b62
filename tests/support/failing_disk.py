"""A disk that fails at a call of one's choice."""

import os

THOROUGH = bool(os.environ.get("IMGCLF_THOROUGH"))


class Disk:
    """Stands in front of the system's calls that change a folder: `fault(path)` takes the place of the `k`-th one.

    Of the writings to one file only the first is counted, in the thorough form every one. What was not flushed before
    its file got its final name is kept in `volatile`, as a power cut would take it.
    """

    def __init__(self, patch, folder, k=0, fault=None):
        self.calls, self.k, self.fault, self.folder = 0, k, fault, str(folder)
        self.flushed, self.volatile = set(), set()
        self.real = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}
        self.open = open
        patch.setattr(os, "fsync", self._fsync)
        patch.setattr(os, "replace", lambda *names: self._rename("replace", *names))
        patch.setattr(os, "rename", lambda *names: self._rename("rename", *names))
        patch.setattr("builtins.open", self._open)

    def count(self, path, shown):
        """One call about `path`, which the system's error names as `shown`."""
        if self.folder not in os.path.abspath(path):
            return
        self.calls += 1
        if self.calls == self.k:
            self.fault(shown)

    def _fsync(self, descriptor):
        self.count(os.readlink(f"/proc/self/fd/{descriptor}"), None)
        self.flushed.add(os.fstat(descriptor).st_ino)
        return self.real["fsync"](descriptor)

    def _rename(self, name, old, new):
        self.count(old, str(old))
        if os.path.isfile(old) and self.folder in os.path.abspath(old) and os.stat(old).st_ino not in self.flushed:
            self.volatile.add(str(new))
        return self.real[name](old, new)

    def _open(self, path, mode="r", *args, **options):
        if isinstance(path, int) or not set(mode) & set("wax+"):
            return self.open(path, mode, *args, **options)
        self.count(path, str(path))
        return _Counted(self.open(path, mode, *args, **options), self, path)


class _Counted:
    """A file that a writing may fail to, after half of the data."""

    def __init__(self, file, disk, path):
        self._file, self._disk, self._path, self._writes = file, disk, path, 0

    def write(self, data):
        self._writes += 1
        if THOROUGH or self._writes == 1:
            try:
                self._disk.count(self._path, None)
            except OSError:
                self._file.write(data[: len(data) // 2])
                raise
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self._file.close()
