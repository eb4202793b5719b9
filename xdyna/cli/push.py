"""Put a pipeline folder on the Hugging Face hub: `xdyna push`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from xdyna.cli.arguments import program_name


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    p = argparse.ArgumentParser(
        prog=program_name("push"),
        description="Upload a pipeline folder with its card to the Hugging Face hub; private unless --public is given.",
        epilog="example: xdyna push runs/three/final me/xdyna-three --dry-run",
        allow_abbrev=False,
    )
    p.add_argument("folder", type=Path, metavar="FOLDER", help="pipeline folder with README.md and conditions.json")
    p.add_argument("repo", metavar="OWNER/NAME", help="repository on the hub; made where it is not there")
    p.add_argument("--public", action="store_true", help="let everybody see it")
    p.add_argument("--overwrite", action="store_true", help="commit to a repository that is there already")
    p.add_argument("--message", default="Upload a pipeline of xdyna", metavar="TEXT", help="of the commit")
    p.add_argument("--dry-run", action="store_true", help="say what would be uploaded, and stop; needs no network")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def main(argv: Sequence[str]) -> int:
    """Run `xdyna push`. Args: argv: without the program's name. Returns: exit code."""
    args = parser().parse_args(argv)
    from xdyna.checkpoints.push import plan_upload, push
    from xdyna.core.quiet import quiet_libraries
    from xdyna.pipelines.folder import UNTRAINED_MARK, named_folder

    quiet_libraries()
    upload = plan_upload(named_folder(args.folder), args.repo)
    print(upload.describe())
    if UNTRAINED_MARK in upload.files:
        print("note: the folder says that its weights are untrained or unfinished")
    if args.dry_run:
        print(f"nothing was uploaded; it would be {'public' if args.public else 'private'}")
        return 0
    print(f"wrote {push(upload, public=args.public, overwrite=args.overwrite, message=args.message)}")
    return 0
