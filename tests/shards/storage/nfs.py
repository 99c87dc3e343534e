"""What Linux does otherwise on NFS, for tests of what is to work there."""

import errno
import fcntl
import os

flock = fcntl.flock


def as_nfs(monkeypatch):
    """Refuse exclusive locks to who has opened a file to read only: NFS makes byte-range locks of them."""

    def lock(file, how):
        descriptor = file if isinstance(file, int) else file.fileno()
        if how & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", lock)
