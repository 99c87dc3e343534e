"""The errors that are told in one line: for data that the user has to mend, and for work cut short."""


class BadInput(ValueError):
    """Bad data or files of the user's: one line naming file or id, what is wrong, and the remedy."""


class CorruptSample(BadInput):
    """One sample of a data set, named, is not what was written; the others may well be whole."""


class CutShort(RuntimeError):
    """The work was stopped from outside, through no fault of the data: one line with the remedy."""
