"""The code keeps the laws of learning."""

import laws
import pytest


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_code_keeps_the_law(law):
    law()
