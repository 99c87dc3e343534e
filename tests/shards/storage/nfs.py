"""What Linux does otherwise on NFS, for tests of what is to work there."""

import errno
import fcntl
import os
import stat

flock = fcntl.flock


def as_nfs(monkeypatch):
    """Refuse exclusive locks to who has opened a file to read only: NFS makes byte-range locks of them.

    Those of a folder no server knows of: they hold on one machine, and here each opening is another's.
    """

    def lock(file, how):
        descriptor = file if isinstance(file, int) else file.fileno()
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return None
        if how & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", lock)
