import pytest

from tests.ops.cases import IMPLEMENTATIONS


@pytest.fixture(params=list(IMPLEMENTATIONS))
def pool(request):
    """`sa_roi_align`, once as the registered operator (compiled where built), once as the reference."""
    return IMPLEMENTATIONS[request.param]
