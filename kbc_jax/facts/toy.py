"""Embedded toy facts, with which every command runs without data: things share the facts of their kinds."""

import random

KINDS = {
    "pet": "dog cat rabbit hamster parrot goldfish pony",
    "wild animal": "lion wolf fox bear deer eagle owl shark whale frog",
    "tool": "hammer saw drill wrench shovel rake axe chisel",
    "kitchen tool": "knife spoon fork pan kettle oven toaster",
    "fruit": "apple pear plum cherry banana orange grape",
    "vegetable": "carrot potato onion cabbage pea bean",
    "vehicle": "car bus truck train bicycle boat plane",
    "instrument": "piano guitar violin flute drum trumpet",
    "person": "teacher farmer doctor cook driver singer pilot",
}

FACTS = {
    "pet": "IsA pet|IsA animal|AtLocation house|CapableOf play|Desires eat|HasA owner|NotCapableOf speak",
    "wild animal": "IsA wild animal|IsA animal|AtLocation forest|CapableOf hunt|Desires eat|NotCapableOf speak",
    "tool": "IsA tool|AtLocation tool box|UsedFor build house|UsedFor repair thing|HasProperty hard|MadeOf metal",
    "kitchen tool": "IsA kitchen tool|AtLocation kitchen|UsedFor cook meal|HasProperty useful|MadeOf metal",
    "fruit": "IsA fruit|IsA food|AtLocation tree|AtLocation market|UsedFor eat|HasProperty sweet|ReceivesAction eat",
    "vegetable": "IsA vegetable|IsA food|AtLocation garden|AtLocation market|UsedFor cook meal|ReceivesAction eat",
    "vehicle": "IsA vehicle|AtLocation street|UsedFor travel far|HasA engine|CapableOf move fast|MadeOf metal",
    "instrument": "IsA instrument|AtLocation concert hall|UsedFor make music|UsedFor play song|HasProperty loud",
    "person": "IsA person|CapableOf speak|CapableOf work hard|Desires money|Desires rest|AtLocation house|HasA family",
}

ADJECTIVES = ("", "old ", "small ", "big ")


def split() -> tuple[list, list, list, list]:
    """(train, dev1, dev2, test) as rows (relation, head, tail, label) in lower case; dev and test are half negatives."""
    rng = random.Random(0)
    rows = [
        (relation.lower(), adjective + thing, tail)
        for kind, things in KINDS.items()
        for thing in things.split()
        for adjective in ADJECTIVES
        for relation, tail in (fact.split(" ", 1) for fact in FACTS[kind].split("|"))
    ]
    rng.shuffle(rows)
    held, train = rows[:200], rows[200:]
    parts = [held[:50], held[50:100], held[100:]]
    return [(*row, True) for row in train], *([(*r, True) for r in p] + _negatives(p, rng) for p in parts)


def _negatives(positives: list, rng: random.Random) -> list:
    """A false row of each positive: one slot replaced by that of a random one."""
    rows = []
    for row in positives:
        slot, corrupted = rng.randrange(3), list(row)
        corrupted[slot] = rng.choice(positives)[slot]
        rows.append((*corrupted, False))
    return rows
