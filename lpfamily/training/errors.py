"""The one exception that the commands turn into a line on stderr."""


class BadInput(ValueError):
    """Something from outside (an option, a file) cannot be used.

    The message is one line: what is wrong, what was given, what to do. The commands print it to
    stderr and end with exit code 2; whatever else is raised is a failure of the program.
    """
