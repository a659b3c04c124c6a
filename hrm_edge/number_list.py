"""A type of command line options that several verbs share."""

import click


class Numbers(click.ParamType):
    """Whole numbers joined by commas."""

    name = "n,n,..."

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() for part in parts):
            self.fail(f"{value!r} is not a list of whole numbers", param, ctx)
        return tuple(map(int, parts))
