"""What tests share: one fleet that nothing is done to."""

import pytest

from fleet import Gateway, Worker


@pytest.fixture(scope="session")
def workers():
    """Two workers."""
    with Worker() as one, Worker() as other:
        yield one, other


@pytest.fixture(scope="session")
def gateway(workers):
    """SMG before both, taking turns."""
    with Gateway(workers, "--policy", "round_robin") as smg:
        yield smg


@pytest.fixture(scope="session")
def client(gateway):
    """The OpenAI client."""
    return gateway.client()
