"""Objects that nobody has told the language model of."""

import json

import pytest

from dataprep.generation.objects import COCO_CATEGORIES, supported, unsupported

KNOWN = supported(["A woman in a coat walks a puppy on a pier, with vehicles behind her."], ["boat"])


def named(answer: str, question: str = "What is there?", known=KNOWN) -> list[str]:
    return unsupported([(question, answer)], known)


def test_the_kinds_are_cocos(shared):
    assert len(set(COCO_CATEGORIES)) == 80
    real = json.loads((shared / "raw-coco/person_keypoints_excerpt.json").read_text())
    assert {category["name"] for category in real["categories"]} <= set(COCO_CATEGORIES)


SEEN = {
    "in a box": "A boat lies on the water.",
    "in a caption by another name": "The dog is on a lead.",
    "a person by other words": "The lady walks, and a man waits.",
    "implied": "A truck and two cars are behind her.",
    "one of two kinds, one of them known": "A van is parked.",
}
UNSEEN = {
    "plain": ("A cat sits on the pier.", ["cat"]),
    "plural": ("Two cats and several bicycles are there.", ["cats", "bicycles"]),
    "of two words": ("There is a traffic light near the wine glasses.", ["traffic light", "wine glasses"]),
    "with an article that tells": ("The train passes, and a bear waits.", ["train", "bear"]),
    "said to be seen": ("A cat can be seen on the pier. You can see a horse.", ["cat", "horse"]),
    "either, none known": ("A bike leans on the rail. Two laptops lie there.", ["laptops"]),
}
LEFT = {
    "denied": "There is no cat, and she does not hold an umbrella.",
    "supposed": "She could meet a cat, and perhaps a horse. She can be joined by a cow.",
    "compared": "The cloud looks like a horse.",
    "many meanings": "The sky is orange, they train hard, bear with it, tie it and book it.",
    "another thing": "She stands at the bus stop next to the train tracks, a hot-air balloon above.",
    "part of a word": "The scatter of catkins and carpets is dogged.",
}


@pytest.mark.parametrize("answer", [*SEEN.values(), *LEFT.values()], ids=[*SEEN, *LEFT])
def test_what_may_be_there_or_may_be_meant_otherwise_is_not_flagged(answer):
    assert named(answer) == []


@pytest.mark.parametrize(("answer", "names"), UNSEEN.values(), ids=UNSEEN.keys())
def test_what_nobody_has_told_of_is_flagged(answer, names):
    assert named(answer) == names


def test_the_longest_name_counts():
    assert named("She eats a hot dog and holds a teddy bear.", known=frozenset()) == ["hot dog", "teddy bear"]
    assert named("A hot dog.", known=frozenset({"hot dog"})) == []
    assert named("A hot dog.", known=frozenset({"dog"})) == ["hot dog"]


def test_a_question_that_is_answered_with_no_claims_nothing():
    assert named("No, only a boat.", "Is there a horse?") == []
    assert named("Yes, beside the boat.", "Is there a horse?") == ["horse"]


def test_every_kind_is_supported_by_its_own_name_and_flagged_without():
    flagged = 0
    for category in COCO_CATEGORIES:
        text = f"Here is the {category}."
        if named(text, known=frozenset()):
            flagged += 1
            assert named(text, known=supported([], [category])) == []
            assert named(text, known=supported([text], [])) == []
    # `person`, `tie`, `orange`, `cup`, `mouse` and the like alone say too little.
    assert flagged > 65
