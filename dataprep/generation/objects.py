"""Objects that an answer names and that stand neither in the captions nor in the boxes.

A language model that sees only captions invents what usually goes with them. What is looked for are COCO's 80 kinds of
objects, by their names and common synonyms, as CHAIR does for captions (https://arxiv.org/abs/1809.02156); the lists
are ours. The rule is to be right where it speaks rather than to speak often:

* It sees: a named object of the 80 kinds that neither a box nor a caption has, also where a caption has it under
  another name (`puppy`) or only implies it (`vehicles`, `skier`).
* It cannot see: anything outside the 80 kinds (trees, walls, colours), wrong numbers, places and actions, and words
  that mean several things (`orange`, `tie`, `train`, `glass`, `table`) where nothing beside them tells which is meant.
* It looks away from sentences that deny (`there is no dog`), suppose (`could`, `perhaps`, `if`) or compare (`like a`),
  and from a question that is answered with no.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: By category: what names it and nothing else. Plurals in -s are added.
_NAMES = {
    "person": "man men woman women boy girl child children lady ladies toddler pedestrian",
    "bicycle": "bicycle",
    "car": "car sedan taxi",
    "motorcycle": "motorcycle motorbike moped",
    "airplane": "airplane aeroplane aircraft jetliner",
    "bus": "bus buses double-decker",
    "train": "a_train the_train locomotive freight_train passenger_train",
    "truck": "truck lorry lorries fire_engine firetruck",
    "boat": "boat sailboat canoe kayak rowboat speedboat ferry",
    "traffic light": "traffic_light traffic_signal stoplight",
    "fire hydrant": "fire_hydrant hydrant",
    "stop sign": "stop_sign",
    "parking meter": "parking_meter",
    "bench": "bench benches",
    "bird": "bird pigeon seagull duck swan parrot",
    "cat": "cat kitten",
    "dog": "dog puppy puppies",
    "horse": "horse pony ponies foal",
    "sheep": "sheep lamb",
    "cow": "cow cattle bull calf calves",
    "elephant": "elephant",
    "bear": "a_bear the_bear polar_bear brown_bear grizzly_bear black_bear",
    "zebra": "zebra",
    "giraffe": "giraffe",
    "backpack": "backpack rucksack",
    "umbrella": "umbrella parasol",
    "handbag": "handbag purse",
    "tie": "necktie bow_tie",
    "suitcase": "suitcase",
    "frisbee": "frisbee",
    "skis": "skis",
    "snowboard": "snowboard",
    "sports ball": "soccer_ball tennis_ball beach_ball a_ball the_ball",
    "kite": "kite",
    "baseball bat": "baseball_bat",
    "baseball glove": "baseball_glove baseball_mitt",
    "skateboard": "skateboard",
    "surfboard": "surfboard",
    "tennis racket": "tennis_racket tennis_racquet",
    "bottle": "bottle",
    "wine glass": "wine_glass wine_glasses wineglass wineglasses",
    "cup": "coffee_cup teacup mug",
    "fork": "a_fork the_fork forks",
    "knife": "knife knives",
    "spoon": "spoon",
    "bowl": "a_bowl the_bowl bowls",
    "banana": "banana",
    "apple": "apple",
    "sandwich": "sandwich sandwiches",
    "orange": "oranges",
    "broccoli": "broccoli",
    "carrot": "carrot",
    "hot dog": "hot_dog hotdog",
    "pizza": "pizza",
    "donut": "donut doughnut",
    "cake": "cake cupcake",
    "chair": "chair armchair",
    "couch": "couch couches sofa",
    "potted plant": "potted_plant houseplant",
    "bed": "a_bed the_bed beds",
    "dining table": "dining_table",
    "toilet": "toilet",
    "tv": "tv tvs television",
    "laptop": "laptop",
    "mouse": "computer_mouse",
    "remote": "remote_control",
    "keyboard": "computer_keyboard a_keyboard the_keyboard",
    "cell phone": "cell_phone cellphone smartphone mobile_phone",
    "microwave": "microwave",
    "oven": "oven",
    "toaster": "toaster",
    "sink": "a_sink the_sink kitchen_sink bathroom_sink",
    "refrigerator": "refrigerator fridge",
    "book": "a_book the_book books",
    "clock": "clock",
    "vase": "vase",
    "scissors": "scissors",
    "teddy bear": "teddy_bear",
    "hair drier": "hair_drier hair_dryer hairdryer",
    "toothbrush": "toothbrush toothbrushes",
}

#: Words for one of several kinds.
_EITHER = {
    "bicycle motorcycle": "bike",
    "car truck": "van pickup pickup_truck minivan suv",
}

#: Words of captions that speak for all of these, though an answer that has them claims none.
_IMPLIED = {
    "person": "person persons people crowd couple group family families team kid baby babies guy player rider officer"
    " he she his her him they their someone somebody worker chef batter catcher umpire skier snowboarder surfer"
    " skateboarder skater biker cyclist motorcyclist passenger driver hand hands face pedestrians player human soldier"
    " student tourist fan mother father son daughter friends gentleman male female teen teenager adult boarder",
    "car truck bus motorcycle": "vehicle traffic parking_lot",
    "bicycle motorcycle": "cycle cyclist biker rider",
    "bird cat dog horse sheep cow elephant bear zebra giraffe": "animal herd flock pet wildlife livestock",
    "bear": "bear bears cub",
    "train": "train trains subway tram trolley railway",
    "airplane": "plane jet planes",
    "boat": "ship yacht vessel raft",
    "skis": "ski skier skiing",
    "snowboard": "snowboarder snowboarding boarder",
    "surfboard": "surfer surfing surf board",
    "skateboard": "skateboarder skateboarding skater skating board",
    "baseball bat,baseball glove,sports ball": "baseball batter catcher pitcher umpire bat glove mitt softball",
    "tennis racket,sports ball": "tennis racket racquet",
    "sports ball": "ball soccer football basketball volleyball",
    "frisbee": "disc disk",
    "backpack handbag suitcase": "bag luggage baggage",
    "cup,bottle,wine glass": "cup glass drink beverage wine coffee tea beer",
    "fork knife spoon": "utensil silverware cutlery",
    "fork": "fork",
    "bowl": "bowl",
    "apple banana orange": "fruit orange",
    "broccoli carrot": "vegetable veggies salad",
    "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake": "food meal lunch dinner dessert",
    "sandwich": "burger hamburger sub",
    "donut cake": "pastry pastries dessert",
    "chair,couch,bed,dining table": "furniture seat living_room",
    "bed": "bed bedroom",
    "couch": "loveseat",
    "potted plant,vase": "plant flower flowers bouquet",
    "laptop,keyboard,mouse,tv": "computer monitor screen desktop",
    "keyboard": "keyboard",
    "mouse": "mouse",
    "remote": "remote controller wii",
    "cell phone": "phone cell",
    "oven,microwave": "stove kitchen",
    "sink": "sink",
    "book": "book bookshelf bookshelves bookcase library magazine",
    "teddy bear": "stuffed_animal stuffed_bear plush",
    "tie": "tie suit",
    "traffic light": "light lights signal",
    "stop sign": "sign",
}

#: Words in which a name stands for something else.
_OTHERS = (
    "bus_stop bus_station bus_driver train_station train_track train_ride car_park car_seat dog_park dog_bed flower_bed"
    " truck_bed toilet_paper chair_lift ski_lift bird's-eye bench_press cake_stand horse_racing book_a orange_juice"
    " bottle_opener car_race boat_ride boat_house book_store pizza_oven pizza_box apple_tree orange_tree a_train_of"
    " the_train_of the_bed_of a_bed_of ball_game a_ball_game a_fork_in kite_surfing"
)

_DENIES = re.compile(r"\b(?:no|not|never|nor|neither|without|none|nobody|absent|lacks?|missing|rather than)\b|n't\b")
_SUPPOSES = re.compile(
    # Who says that a thing can be seen claims it.
    r"\b(?:if|could|may|might|would|should|can(?! (?:be (?:seen|found|spotted|observed)|see)\b)|perhaps|maybe|possibly|"
    r"probably|likely|potential|potentially|such as|suggests?|e\.g|for example|for instance|imagine|whether|or other|"
    r"like an?|resembl\w+|as if|similar to|reminiscent)\b"
)
_NO = re.compile(r"\W*(?:no|none|not|there (?:is|are) no)\b", re.IGNORECASE)
_SENTENCES = re.compile(r"[.!?;\n]+")


def _plurals(form: str) -> Iterable[str]:
    return (form, f"{form}s")


def _forms(table: dict[str, str]) -> dict[str, frozenset[str]]:
    """Return the categories of every form. Several categories of a key are parted by commas, else by blanks."""
    forms: dict[str, set[str]] = {}
    for key, words in table.items():
        categories = [key] if key in _NAMES else key.split("," if "," in key else " ")
        assert set(categories) <= _NAMES.keys(), key
        for word in words.split():
            for form in _plurals(word.replace("_", " ")):
                forms.setdefault(form, set()).update(categories)
    return {form: frozenset(categories) for form, categories in forms.items()}


def _pattern(forms: Iterable[str]) -> re.Pattern[str]:
    """Return what finds the longest of some words."""
    ordered = sorted(forms, key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, ordered))})(?![\w-])")


COCO_CATEGORIES = tuple(_NAMES)

_CLAIMED = {**_forms(_NAMES), **_forms(_EITHER)}
#: With their articles too, which begin the longer match where one belongs to a name.
_NEUTRAL = {
    article + form: frozenset[str]()
    for word in _OTHERS.split()
    for form in _plurals(word.replace("_", " "))
    for article in ("", "a ", "the ")
}
_CLAIMS = _CLAIMED | _NEUTRAL
_CLAIM_PATTERN = _pattern(_CLAIMS)

_SUPPORTS = _forms(_IMPLIED)
_SUPPORT_PATTERN = _pattern(_SUPPORTS)


def supported(captions: Iterable[str], categories: Iterable[str]) -> frozenset[str]:
    """Return the kinds of objects that may be named.

    Args:
        categories: of the boxes.
    """
    found = {category.lower() for category in categories}
    for caption in captions:
        text = caption.lower()
        for form in _CLAIM_PATTERN.findall(text):
            found |= _CLAIMS[form]
        for form in _SUPPORT_PATTERN.findall(text):
            found |= _SUPPORTS[form]
    return frozenset(found)


def unsupported(pairs: Iterable[tuple[str, str]], known: frozenset[str]) -> list[str]:
    """Return the names of objects, as they stand in questions and answers, that are not known to be in the picture.

    Args:
        known: what `supported` gave.
    """
    found: dict[str, None] = {}
    for question, answer in pairs:
        texts = [answer] if _NO.match(answer) else [question, answer]
        for sentence in (sentence for text in texts for sentence in _SENTENCES.split(text.lower())):
            if _DENIES.search(sentence) or _SUPPOSES.search(sentence):
                continue
            for form in _CLAIM_PATTERN.findall(sentence):
                if _CLAIMS[form] and not _CLAIMS[form] & known:
                    found[form.removeprefix("a ").removeprefix("the ")] = None
    return list(found)
