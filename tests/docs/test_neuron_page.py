"""The page on neurons of one's own runs as it is written, and says what it promises."""

import re
from pathlib import Path

from crashsim_hardware.engines.brian2_loading import brian2_at_rest

PAGE = Path(__file__).parents[2] / "docs" / "doors" / "neuron.md"


def test_the_code_of_the_page_runs(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == 3
    namespace = {"__name__": "page"}
    with brian2_at_rest():  # a user's own process would keep brian2's preferences
        for block in blocks:
            exec(compile(block, "neuron.md", "exec"), namespace)
    told = capsys.readouterr().out.split()
    assert told == ["True", "True", "dead-neuron", "True", "True"]
