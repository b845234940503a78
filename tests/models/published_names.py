"""The 200 classes of CUB-200-2011 in their order, and some of Stanford Cars'."""

# "A B*Gull" is A_Gull and B_Gull.
_BIRDS = """
Black_footed Laysan Sooty*Albatross / Groove_billed*Ani / Crested Least Parakeet Rhinoceros*Auklet /
Brewer Red_winged Rusty Yellow_headed*Blackbird / Bobolink / Indigo Lazuli Painted*Bunting / Cardinal /
Spotted Gray*Catbird / Yellow_breasted*Chat / Eastern*Towhee / Chuck_will*Widow / Brandt Red_faced Pelagic*Cormorant /
Bronzed Shiny*Cowbird / Brown*Creeper / American Fish*Crow / Black_billed Mangrove Yellow_billed*Cuckoo /
Gray_crowned_Rosy Purple*Finch / Northern*Flicker /
Acadian Great_Crested Least Olive_sided Scissor_tailed Vermilion Yellow_bellied*Flycatcher / Frigatebird /
Northern*Fulmar / Gadwall / American European*Goldfinch / Boat_tailed*Grackle /
Eared Horned Pied_billed Western*Grebe / Blue Evening Pine Rose_breasted*Grosbeak / Pigeon*Guillemot /
California Glaucous_winged Heermann Herring Ivory Ring_billed Slaty_backed Western*Gull /
Anna Ruby_throated Rufous*Hummingbird / Green*Violetear / Long_tailed Pomarine*Jaeger / Blue Florida Green*Jay /
Dark_eyed*Junco / Tropical Gray*Kingbird / Belted Green Pied Ringed White_breasted*Kingfisher /
Red_legged*Kittiwake / Horned*Lark / Pacific*Loon / Mallard / Western*Meadowlark / Hooded Red_breasted*Merganser /
Mockingbird / Nighthawk / Clark*Nutcracker / White_breasted*Nuthatch / Baltimore Hooded Orchard Scott*Oriole /
Ovenbird / Brown White*Pelican / Western_Wood*Pewee / Sayornis / American*Pipit / Whip_poor*Will / Horned*Puffin /
Common White_necked*Raven / American*Redstart / Geococcyx / Loggerhead Great_Grey*Shrike /
Baird Black_throated Brewer Chipping Clay_colored House Field Fox Grasshopper Harris Henslow Le_Conte Lincoln
Nelson_Sharp_tailed Savannah Seaside Song Tree Vesper White_crowned White_throated*Sparrow / Cape_Glossy*Starling /
Bank Barn Cliff Tree*Swallow / Scarlet Summer*Tanager / Artic Black Caspian Common Elegant Forsters Least*Tern /
Green_tailed*Towhee / Brown Sage*Thrasher /
Black_capped Blue_headed Philadelphia Red_eyed Warbling White_eyed Yellow_throated*Vireo /
Bay_breasted Black_and_white Black_throated_Blue Blue_winged Canada Cape_May Cerulean Chestnut_sided Golden_winged
Hooded Kentucky Magnolia Mourning Myrtle Nashville Orange_crowned Palm Pine Prairie Prothonotary Swainson Tennessee
Wilson Worm_eating Yellow*Warbler / Northern Louisiana*Waterthrush / Bohemian Cedar*Waxwing /
American_Three_toed Pileated Red_bellied Red_cockaded Red_headed Downy*Woodpecker /
Bewick Cactus Carolina House Marsh Rock Winter*Wren / Common*Yellowthroat
"""


def _expand(group):
    kinds, _, last = group.strip().rpartition("*")
    return [f"{kind}_{last}" for kind in kinds.split()] if kinds else [last]


BIRDS = [name for group in _BIRDS.split("/") for name in _expand(group)]
BIRDS = [f"{number:03}.{name}" for number, name in enumerate(BIRDS, 1)]

# Models by type: a plain one of each, and those whose names tell their type in an odd way or not at all.
CARS = {
    "Convertible": ["Rolls-Royce Phantom Drophead Coupe Convertible 2012", "smart fortwo Convertible 2012"],
    "Coupe": [
        "Acura Integra Type R 2001", "Audi TT RS Coupe 2012", "Chevrolet Cobalt SS 2010",
        "Chevrolet Corvette Ron Fellows Edition Z06 2007", "Chevrolet Corvette ZR1 2012",
        "Dodge Challenger SRT8 2011", "Infiniti G Coupe IPL 2012", "Jaguar XK XKR 2012",
        "Lamborghini Gallardo LP 570-4 Superleggera 2012",
    ],
    "Hatchback": ["FIAT 500 Abarth 2012", "Hyundai Elantra Touring Hatchback 2012"],
    "Pickup": ["Dodge Ram Pickup 3500 Quad Cab 2009", "Ford Ranger SuperCab 2011", "HUMMER H2 SUT Crew Cab 2009"],
    "SUV": ["AM General Hummer SUV 2000", "Chevrolet TrailBlazer SS 2009", "Land Rover Range Rover SUV 2012"],
    "Sedan": [
        "Acura TL Type-S 2008", "Buick Regal GS 2012", "Chrysler 300 SRT-8 2010", "Dodge Charger SRT-8 2009",
        "Lincoln Town Car Sedan 2011", "Tesla Model S Sedan 2012",
    ],
    "Wagon": [
        "Audi 100 Wagon 1994", "Chevrolet Express Cargo Van 2007", "Chevrolet HHR SS 2010",
        "Chrysler Town and Country Minivan 2012", "Ford E-Series Wagon Van 2012", "Ram C/V Cargo Van Minivan 2012",
    ],
}  # fmt: skip
