import threading
from collections.abc import Iterator

import pytest

from helpers.data_files import Mirror


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """Serve in a thread for as long as a test runs."""
    made = Mirror()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()
