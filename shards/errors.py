"""The errors for data that the user has to mend."""


class BadInput(ValueError):
    """Bad data or files of the user's: one line naming file or id, what is wrong, and the remedy."""


class CorruptSample(BadInput):
    """One sample of a data set, named, is not what was written; the others may well be whole."""
