"""Property tests on a loaded machine: an example may take as long as it takes."""

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
