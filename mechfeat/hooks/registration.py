"""One lock around every change of a module's hook tables: they are plain dicts, and two threads may hook one model."""

import threading

REGISTRATION = threading.Lock()
