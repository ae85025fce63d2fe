"""`python -m longcat_ops certify`: the text of a `Certificate`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from ..engine.certificate import Certificate, certify
from .main import DIFFERENT

DEFAULT_CHECKPOINT = Path("checkpoints/longcat-tiny")


def run(args: argparse.Namespace) -> int:
    path = args.folder or DEFAULT_CHECKPOINT
    found = certify(path, ranks=args.ranks, rows=args.rows, precision=args.precision)
    print(json.dumps(to_dict(found), indent=2) if args.json else found)
    return 0 if found.holds else DIFFERENT


def to_dict(certificate: Certificate) -> dict[str, object]:
    """Plain numbers and strings, ready for JSON."""
    return {"holds": certificate.holds, **asdict(certificate)}
