"""A library that starts a thread when it is imported, as some do."""

import threading

import tests.support.probe_engine  # noqa: F401  an engine more

threading.Thread(target=threading.Event().wait, daemon=True).start()
