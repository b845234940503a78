"""CUB-200-2011 (Wah et al., 2011), birds: 200 species, 39 families, in the lists that are published.

Dual Skipping Networks takes "39 coarse labels in total by the family names of the 200 bird species" and does not list
them. The family of a species follows here from the last word of its English name, with the exceptions below. By the
checklists of today that makes 37 families; the paper's number is met with the two that older ones keep apart, of terns
(Sternidae) and of tanagers (Thraupidae). That choice is our reading.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from .listed import ListedImages

FOLDER = "CUB_200_2011"
_WORDS = {
    "Alaudidae": "Lark",
    "Alcedinidae": "Kingfisher",
    "Alcidae": "Auklet Guillemot Puffin",
    "Anatidae": "Gadwall Mallard Merganser",
    "Bombycillidae": "Waxwing",
    "Caprimulgidae": "Nighthawk Widow Will",
    "Cardinalidae": "Bunting Cardinal Grosbeak",
    "Certhiidae": "Creeper",
    "Corvidae": "Crow Jay Nutcracker Raven",
    "Cuculidae": "Ani Cuckoo Geococcyx",
    "Diomedeidae": "Albatross",
    "Fregatidae": "Frigatebird",
    "Fringillidae": "Finch Goldfinch",
    "Gaviidae": "Loon",
    "Hirundinidae": "Swallow",
    "Icteridae": "Blackbird Bobolink Cowbird Grackle Meadowlark Oriole",
    "Icteriidae": "Chat",
    "Laniidae": "Shrike",
    "Laridae": "Gull Kittiwake",
    "Mimidae": "Catbird Mockingbird Thrasher",
    "Motacillidae": "Pipit",
    "Parulidae": "Ovenbird Redstart Warbler Waterthrush Yellowthroat",
    "Passerellidae": "Junco Sparrow Towhee",
    "Pelecanidae": "Pelican",
    "Phalacrocoracidae": "Cormorant",
    "Picidae": "Flicker Woodpecker",
    "Podicipedidae": "Grebe",
    "Procellariidae": "Fulmar",
    "Sittidae": "Nuthatch",
    "Stercorariidae": "Jaeger",
    "Sternidae": "Tern",
    "Sturnidae": "Starling",
    "Thraupidae": "Tanager",
    "Trochilidae": "Hummingbird Violetear",
    "Troglodytidae": "Wren",
    "Tyrannidae": "Flycatcher Kingbird Pewee Sayornis",
    "Vireonidae": "Vireo",
}
_EXCEPTIONS = {
    "Evening_Grosbeak": "Fringillidae",
    "House_Sparrow": "Passeridae",
    "Pine_Grosbeak": "Fringillidae",
    "Spotted_Catbird": "Ptilonorhynchidae",
}
_FAMILY_OF = {word: family for family, words in _WORDS.items() for word in words.split()}
FAMILIES = tuple(sorted({*_WORDS, *_EXCEPTIONS.values()}))


def family_of(species: str) -> str:
    """The family of a class such as ``"001.Black_footed_Albatross"``.

    Raises:
        UserError: the name is none of the data set's.
    """
    name = species.partition(".")[2] or species
    family = _EXCEPTIONS.get(name) or _FAMILY_OF.get(name.rpartition("_")[2])
    if family is None:
        raise UserError(f"class {species!r} is no species of CUB-200-2011, whose family is known")
    return family


def _rows(root: Path, name: str) -> dict[int, str]:
    """The lines "number text" of a list, by number."""
    path = root / name
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"no {name} in {root}; expected {FOLDER} as it is published, unpacked") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no list of text ({error.reason}); unpack it again") from error
    rows: dict[int, str] = {}
    for i, line in enumerate(lines):
        number, _, text = line.strip().partition(" ")
        if not number.isdecimal() or not text:
            raise UserError(f"{path}, line {i + 1}: {line[:60]!r}; expected a number and a word: unpack it again")
        rows[int(number)] = text
    return rows


def _numbers(rows: dict[int, str], path: Path, allowed: Iterable[int]) -> dict[int, int]:
    known = {str(value): value for value in allowed}
    for number, text in rows.items():
        if text not in known:
            raise UserError(f"{path}: image {number} has {text!r}; expected one of {min(known)} to {max(known)}")
    return {number: known[text] for number, text in rows.items()}


class CUB200(ListedImages):
    """Images of CUB-200-2011 with species and family, cut and augmented as :class:`.listed.ListedImages` says.

    Args:
        root: the unpacked ``CUB_200_2011``, or the folder that holds it: ``images.txt``, ``image_class_labels.txt``,
            ``train_test_split.txt``, ``classes.txt`` and ``images``.
        train: the 5,994 training images, else the 5,794 test images, as the published split has them.
        image_size: pixels.
        options: of :class:`.listed.ListedImages`.

    Raises:
        UserError: a list is missing, damaged or does not fit the others, or :class:`.listed.ListedImages` refuses.
    """

    def __init__(self, root: str | Path, train: bool, *, image_size: int = 360, **options: Any) -> None:
        root = Path(root)
        root = root if (root / "images.txt").exists() or not (root / FOLDER).is_dir() else root / FOLDER
        images, classes = _rows(root, "images.txt"), _rows(root, "classes.txt")
        if sorted(classes) != list(range(1, len(classes) + 1)) or not classes:
            raise UserError(f"{root / 'classes.txt'} does not number its classes from 1 on; unpack it again")
        labels = _numbers(_rows(root, "image_class_labels.txt"), root / "image_class_labels.txt", classes)
        split = _numbers(_rows(root, "train_test_split.txt"), root / "train_test_split.txt", (0, 1))
        for name, rows in (("image_class_labels.txt", labels), ("train_test_split.txt", split)):
            if rows.keys() != images.keys():
                raise UserError(f"{root / name} has {len(rows)} images, images.txt {len(images)}; unpack them again")
        species = [classes[number] for number in sorted(classes)]
        families = [family_of(name) for name in species]
        coarse = sorted(set(families))
        files = [(root / "images" / images[i], labels[i] - 1) for i in sorted(images) if split[i] == int(train)]
        if not files:
            raise UserError(f"{root} has no {'training' if train else 'test'} image; unpack it again")
        coarse_of = torch.tensor([coarse.index(family) for family in families])
        super().__init__(files, coarse_of, image_size, train, **options)
        self.class_names = {"coarse": coarse, "fine": species}
        self.coarse_classes, self.fine_classes = len(coarse), len(species)
