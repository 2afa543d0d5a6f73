"""Embedded phrase grammar in three languages, with which every command runs without data.

A caption is a person, perhaps their clothes, what they do, and where. French adjectives and German articles agree with the
person because they are part of one phrase.
"""

import itertools
import random

# English | French | German
PEOPLE = """
a man|un homme|ein Mann
an old man|un vieil homme|ein alter Mann
a young woman|une jeune femme|eine junge Frau
a tall woman|une grande femme|eine große Frau
a little girl|une petite fille|ein kleines Mädchen
a small boy|un petit garçon|ein kleiner Junge
the tired worker|l'ouvrier fatigué|der müde Arbeiter
a black dog|un chien noir|ein schwarzer Hund
the singer|la chanteuse|die Sängerin
a happy child|un enfant heureux|ein fröhliches Kind
"""
CLOTHES = """
||
 in a red shirt| en chemise rouge| in einem roten Hemd
 in a blue coat| en manteau bleu| in einem blauen Mantel
 in a white hat| avec un chapeau blanc| mit einem weißen Hut
 with a green bag| avec un sac vert| mit einer grünen Tasche
"""
DEEDS = """
plays the guitar|joue de la guitare|spielt Gitarre
sits on a bench|est assis sur un banc|sitzt auf einer Bank
runs very fast|court très vite|läuft sehr schnell
throws a yellow ball|lance un ballon jaune|wirft einen gelben Ball
eats an apple|mange une pomme|isst einen Apfel
sleeps on the floor|dort par terre|schläft auf dem Boden
looks at a big tree|regarde un grand arbre|schaut einen großen Baum an
waits for the bus|attend le bus|wartet auf den Bus
drinks cold water|boit de l'eau froide|trinkt kaltes Wasser
jumps over a wall|saute par-dessus un mur|springt über eine Mauer
"""
PLACES = """
in the street|dans la rue|auf der Straße
in front of a house|devant une maison|vor einem Haus
at the beach|à la plage|am Strand
in a park|dans un parc|in einem Park
near a river|près d'une rivière|in der Nähe eines Flusses
on a bridge|sur un pont|auf einer Brücke
in the snow|dans la neige|im Schnee
behind a car|derrière une voiture|hinter einem Auto
"""


def sentences() -> list[tuple[str, str, str]]:
    """All 4,000 captions as (English, French, German), shuffled; always the same."""
    parts = [[tuple(line.split("|")) for line in text.strip("\n").split("\n")] for text in (PEOPLE, CLOTHES, DEEDS, PLACES)]
    rows = []
    for person, clothes, deed, place in itertools.product(*parts):
        rows.append(tuple(f"{p}{c} {d} {w}." for p, c, d, w in zip(person, clothes, deed, place, strict=True)))
    random.Random(0).shuffle(rows)
    return [tuple(text[0].upper() + text[1:] for text in row) for row in rows]
