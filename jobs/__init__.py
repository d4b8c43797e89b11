"""The pipeline: one file per stage, wiring only. `python -m jobs.<stage>` is what a container and the local runner start."""

from itool.artifacts.process import end_on_sigterm_as_process_1

end_on_sigterm_as_process_1()  # before a stage's own imports, which take a second or more
