from tests.fakes.one_thread import one_thread  # noqa: F401
