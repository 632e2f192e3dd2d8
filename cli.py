"""The entry of the `stitch` command. Its parts are in stitch/commands/."""

import sys

from stitch.commands.app import app
from stitch.commands.signals import stop_on_sigterm
from stitch.commands.streams import ready_streams, require_utf8
from stitch.errors import OutputError, UsageError

__all__ = ["app", "main"]


def main() -> None:
    ready_streams()
    stop_on_sigterm()
    try:
        require_utf8(sys.argv[1:])
    except UsageError as error:
        print(f"stitch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(1)
    except OutputError as error:
        print(f"stitch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
