"""What holds for every test."""

import signal

from hypothesis import settings

# A shell's background job begins with Ctrl-C ignored, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline would be a timed test: on a busy machine it fails without a fault.
# The same examples every time: a failure is the change's. --hypothesis-profile=search draws new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("same")
