"""The one exception for what a user can cause and can mend."""


class UserError(Exception):
    """A failure explained to the user in one or two Chinese lines.

    `code` becomes the exit status of the process:
    2 command, configuration, data or device; 3 no usable checkpoint; 4 checkpoint, vocabulary or stage do not fit;
    5 loss not finite; 6 output folder in use; 7 disk full; 8 too much bad data.
    """

    def __init__(self, message, code=2):
        super().__init__(message)
        self.code = code

    def _render_traceback_(self):
        """What a notebook shows: it asks an exception for this instead of a traceback."""
        return [f"错误：{self}"]
