"""Stages that write real artifacts in no time, in place of the real `jobs` package: put this folder's parent on PYTHONPATH.

FAKE_SCRIPT names a JSON file {stage: [directive, ...]}, one directive per attempt; the last one is repeated. `ok`, `exit N`, `kill`,
`hang` (until SIGTERM, then a checkpoint), `stubborn` (ignores SIGTERM), `leave` (ends before a process that it has started), `forget`
(exit 0 without an artifact), `crash` (traceback).
"""
