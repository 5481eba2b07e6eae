"""The calibration: 99 % of whole faces and of pairs of the same person pass, whatever the network."""

import torch

from train.pocket.measuring.faces import identity_kept, intact_share
from train.pocket.measuring.reader.calibration import calibrate
from train.pocket.measuring.reader.reading import Reader

from .tiny import rendered_people, untrained_network


def test_whole_faces_and_the_same_person_pass() -> None:
    people = rendered_people(0, 8)
    network = untrained_network()
    network.whole_shift.fill_(-5.0)
    calibrate(network, people)
    reader = Reader(network)
    clips, others = reader.read(people.clips), reader.read(people.others)
    passed = torch.cat([intact_share(each, only_late=False) for each in (clips, others)]).mean()
    assert 0.985 <= passed <= 1
    assert 0.95 <= identity_kept(others, clips).mean() <= 1
    # The threshold is not simply far away: an untrained network tells some people apart.
    assert identity_kept(others, clips.clips(torch.arange(8).roll(1))).mean() < 0.9
