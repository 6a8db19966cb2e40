"""Fresh processes tell what torch can do, and whether cards compute."""

import torch

from workers.devices.probe import probe_cards
from workers.devices.torch_report import TorchReport, ask_torch
from workers.engines import torch_report as asked


def test_probe_of_cards_that_are_not_there_fails_in_words() -> None:
    assert probe_cards(["0", "7"]) == dict.fromkeys(["0", "7"], "a new process sees 0 of 2 cards")
    # A process sees one instance of a partitioned card.
    assert probe_cards(["MIG-a", "MIG-b"]) == dict.fromkeys(
        ["MIG-a", "MIG-b"], "a new process sees 0 of 1 cards"
    )
    late = probe_cards(["0"], seconds=0.01)
    assert late == {"0": "a new process did not compute on it within 0.01 s"}


def test_torch_report_comes_from_a_process_of_its_own() -> None:
    report = ask_torch(cards=True)
    assert report is not None
    assert list(report.architectures) == asked.architectures()
    assert len(report.cards) == torch.cuda.device_count()
    assert ask_torch(cards=False) == TorchReport(report.architectures)
    assert ask_torch(True, 0.01) is None
