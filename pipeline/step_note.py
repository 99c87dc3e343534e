"""Which step an error belongs to, kept with the error itself."""


class InStep:
    """Notes on whatever error the body raises in which step it was, unless that is noted already."""

    def __init__(self, step: int):
        self._note = f"in step {step}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not getattr(error, "__notes__", None):
            error.add_note(self._note)
