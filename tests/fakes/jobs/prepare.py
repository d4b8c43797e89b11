from __future__ import annotations

import sys

from jobs.fake import run


def main(argv: list[str] | None = None) -> int:
    return run("prepare", argv)


if __name__ == "__main__":
    sys.exit(main())
