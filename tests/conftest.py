"""What holds for every test."""

from hypothesis import settings

# A deadline would be a timed test: on a busy machine it fails without a fault.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
