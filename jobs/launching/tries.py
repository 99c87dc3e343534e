"""How often a task has failed: counted anew with every checkpoint."""

from jobs.launching.plan import Plan


class Tries:
    """Failures of a task's starts since its newest checkpoint; what failed before one is forgiven."""

    def __init__(self, plan: Plan):
        """Nothing has failed yet."""
        self._plan, self._newest, self._errors, self._failed = plan, plan.newest(), plan.errors(), 0

    def fail(self) -> int:
        """Count the failure of the start that has just ended, and return how many there are."""
        before, self._newest = self._newest, self._plan.newest()
        if self._newest != before:
            self._failed = 0
            # Those of the start that has just ended stay: the next may end with the same.
            for path in self._errors:
                path.unlink(missing_ok=True)
        self._errors = self._plan.errors()
        self._failed += 1
        return self._failed
