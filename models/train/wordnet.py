"""Chooses the medical and biological nouns of WordNet 3.0 and writes them to data/terms.tsv.

A term is kept when its *first* sense has a keyword in the gloss and lies in one of the lexicographer
files below, so that "What is X?" has one answer and it is the usual one. The definition is the gloss
up to its first semicolon (examples and asides follow there). Synonyms share a definition; whole
synsets are held out, so a held-out definition is never seen under another name.

usage: python wordnet.py [WORDNET_DIR]      (Debian: apt-get install wordnet-base)
"""

import csv
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
TERMS = DATA / "terms.tsv"
NOTICE = DATA / "WORDNET-LICENSE"
WORDNET_DIR = Path("/usr/share/wordnet")

HELD_OUT_SHARE = 0.05
SEED = 20070306
MAX_DEFINITION_CHARS = 200

KEYWORDS = """disease disorder syndrome inflammation infection organ artery vein nerve muscle bone drug
medicine tissue gland blood tumor cancer symptom surgery surgical hormone vaccine antibiotic""".split()

# Lexicographer files (man 5 lexnames) by the number that stands in data.noun.
LEXICOGRAPHER_FILES = {
    "04": "act", "05": "animal", "06": "artifact", "08": "body", "09": "cognition", "13": "food",
    "18": "person", "19": "phenomenon", "20": "plant", "22": "process", "26": "state", "27": "substance",
}  # fmt: skip


@dataclass(frozen=True)
class Term:
    """One question of the corpus: `name` as WordNet spells it, and the definition to answer with."""

    name: str
    lexfile: str
    synset: str
    held_out: bool
    definition: str


def first_senses(directory: Path) -> dict[str, str]:
    """Lower-case lemma → offset of the synset that is its most frequent sense."""
    senses = {}
    for line in (directory / "index.noun").read_text().splitlines():
        if not line.startswith("  "):
            fields = line.split()
            senses[fields[0]] = fields[-int(fields[2])]
    return senses


def select(directory: Path) -> list[Term]:
    """All terms in the order of data.noun, with the held-out synsets marked."""
    keyword = re.compile(r"\b(" + "|".join(KEYWORDS) + r")(s|es)?\b", re.IGNORECASE)
    first = first_senses(directory)
    chosen: dict[str, tuple[str, str, str, str]] = {}
    for line in (directory / "data.noun").read_text().splitlines():
        if line.startswith("  "):
            continue
        head, gloss = line.rstrip().split(" | ", 1)
        fields = head.split()
        synset, lexfile, n_words = fields[0], fields[1], int(fields[3], 16)
        definition = gloss.split(";")[0].strip()
        is_wanted = lexfile in LEXICOGRAPHER_FILES and keyword.search(gloss)
        if not is_wanted or not definition or len(definition) > MAX_DEFINITION_CHARS:
            continue
        for lemma in (fields[4 + 2 * i] for i in range(n_words)):
            if first[lemma.lower()] == synset:
                entry = (lemma.replace("_", " "), LEXICOGRAPHER_FILES[lexfile], synset, definition)
                chosen.setdefault(lemma.lower(), entry)
    held_out = hold_out([synset for _, _, synset, _ in chosen.values()])
    return [Term(name, lex, syn, syn in held_out, text) for name, lex, syn, text in chosen.values()]


def hold_out(synset_of_each_term: list[str]) -> set[str]:
    """Random synsets that together hold 5 % of the terms."""
    synsets = sorted(set(synset_of_each_term))
    random.Random(SEED).shuffle(synsets)
    wanted = round(HELD_OUT_SHARE * len(synset_of_each_term))
    held_out: set[str] = set()
    for synset in synsets:
        size = synset_of_each_term.count(synset)
        if size <= wanted:
            held_out.add(synset)
            wanted -= size
    return held_out


def licence(directory: Path) -> str:
    """The notice that opens data.noun: every copy must carry it."""
    lines = (directory / "data.noun").read_text().splitlines()
    notice = [re.sub(r"^ +\d+ ?", "", line).rstrip() for line in lines if line.startswith("  ")]
    return "\n".join(notice) + "\n"


def write(directory: Path = WORDNET_DIR) -> None:
    """Writes data/terms.tsv and the licence notice beside it."""
    terms = select(directory)
    DATA.mkdir(exist_ok=True)
    NOTICE.write_text(licence(directory))
    with TERMS.open("w", newline="") as out:
        rows = csv.writer(out, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        rows.writerow(["term", "lexfile", "synset", "split", "definition"])
        for t in terms:
            rows.writerow([t.name, t.lexfile, t.synset, "held_out" if t.held_out else "train", t.definition])
    held = sum(t.held_out for t in terms)
    print(f"{TERMS}: {len(terms)} terms of {len({t.synset for t in terms})} synsets, {held} terms held out")


def read() -> list[Term]:
    """The terms of data/terms.tsv."""
    with TERMS.open(newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [Term(r["term"], r["lexfile"], r["synset"], r["split"] == "held_out", r["definition"]) for r in rows]


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else WORDNET_DIR)
