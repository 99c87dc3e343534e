"""What holds for every test."""

from hypothesis import settings

# A deadline would be a timed test: on a busy machine it fails without a fault.
# The same examples every time: a failure is the change's. --hypothesis-profile=search draws new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("same")
