"""Words and templates for the paraphrases of models/textures. None is in PARAPHRASES of textures.py, which is the test.

`|` separates phrases. {c} is the place of a colour and {s} that of a shade; without a place, both come first. Phrases
have no article: one is added at random. {m} is the material, {d} the defect, {x} the whole.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import textures
from surface import TEXTURES
from textures import DEFECTS, PARAPHRASED_PLAIN, PARAPHRASED_WITH, PARAPHRASES, TINTS, caption

PAIRS = 14000
KNOWN = 0.25  # share of the pairs whose paraphrase is a caption as in training
NAMED, ADJECTIVE = 0.7, 0.15  # shares of the defects that are a noun and an adjective; the rest are sentences
IMPLIED = 0.3  # share of the nouns that imply their shade
FRAMED, TYPO = 0.5, 0.06
USUAL = {"scratch": "bright", "stain": "dark"}  # the shade of a defect whose words name none
# What the denoiser is told, in the words that it draws best (160 pixels, another classifier than that of the results).
DRAWN = {"scratch": "a {s} scratch", "stain": "a {s} stain", "hole": "a small black hole", "smear": "a smear"}
MOST_WORDS = 17  # the text encoder takes 24 tokens


def split(text):
    return tuple(" ".join(phrase.split()) for phrase in text.split("|"))


MATERIALS = {
    "brick": split("""bricks | brick wall | brickwork | wall of {c} brick | wall built of {c} bricks | brick and mortar
        | rows of {c} bricks | the {c} bricks of a building | clay blocks | chimney of {c} brick | stacked {c} bricks
        | brick surface | brick pattern | bricklaying | outer wall of a {c} brick building | fired clay bricks
        | brick tiles | old {c} wall | stone block wall | courses of {c} brick | brick fireplace | blocks with mortar
        joints | garden wall | brick texture | bricks in a wall | wall | exterior wall | side of a {c} building
        | building blocks laid in mortar | mortared bricks | bricks laid by a mason | brick cladding | brick veneer
        | brick lining | factory wall | warehouse wall | barn made of {c} bricks | wall of a {c} cottage
        | weathered {c} brick | handmade {c} bricks | clinker | clinker bricks | brick construction | brick partition
        | structure made from {c} bricks | bond of {c} bricks | running bond | city wall | fortress wall
        | courtyard wall | boundary wall | brick fence | terracotta blocks | kiln-fired blocks | adobe bricks
        | wall with {c} bricks and cement | cemented bricks | brick facing | bare {c} brick | exposed {c} brick
        | loft wall of {c} brick | castle wall | brick tower | brick arch | wall behind the house | alley wall
        | brickwall | brick stack | brick background | building exterior in {c} brick | cinder blocks
        | side of a {c} brick house | bricked surface | layers of {c} brick | block wall | rectangular {c} blocks
        | mortar and blocks | brick siding | brick front | brick building | pier of {c} bricks | oven bricks"""),
    "grass": split("""grass | lawn | blades of {c} grass | field of {c} grass | grassland | pasture | hay
        | football pitch
        | herbage | the {c} grass of a garden | grassy ground | prairie | straw | tall {c} grass | mown {c} grass
        | backyard lawn | vegetation | grass texture | golf course | park ground with {c} grass | fodder | grassy field
        | greenery | leaves of {c} grass | soccer field | sports field | putting green | fairway | garden lawn
        | front yard | yard with {c} grass | stalks | grass stems | tufts of {c} grass | clumps of {c} grass | ryegrass
        | fescue | bluegrass | weeds | weedy ground | groundcover | plants | low {c} plants | paddock
        | cow pasture | grazing land | steppe | savanna | wild {c} grass | uncut {c} grass | freshly cut lawn
        | trimmed {c} lawn | lawn that needs mowing | picnic lawn | stadium grass | playing field | baseball outfield
        | cricket pitch | village green | reeds | sedge | barley leaves | wheat shoots | cereal blades | grass seen from
        above | carpet of {c} grass | blanket of {c} grass | grassy hillside | grass verge | roadside grass | grass bank
        | thick {c} grass | thin {c} leaves growing from the soil | long {c} leaves of a lawn | a patch of {c} grass
        | lawn grass | rough {c} grass | overgrown lawn | green space | park lawn | dense {c} grass | grass plot
        | plant cover of {c} grass | ornamental grass"""),
    "gravel": split("""gravel | pebbles | small {c} stones | bed of {c} gravel | rocks | rocky ground | gravel road
        | stone chips | heap of small {c} rocks | grit | rubble | ballast | loose {c} stones | driveway of {c} gravel
        | cobbles | pebble beach | river stones | scree | gravel texture | dry {c} riverbed | coarse {c} aggregate
        | broken stone | stone fragments | many little {c} stones | chippings | pea gravel | stones | stone ground
        | ground covered with {c} stones | little {c} rocks | small {c} rocks | tiny {c} stones | pile of {c} stones
        | pile of {c} pebbles | layer of {c} gravel | gravel driveway | gravel surface | gravel lot | gravel pit
        | gravel yard | railway ballast | track bed | railroad stones | stones between the rails | moraine | talus
        | riverbed stones | river rock | river pebbles | beach pebbles | sea pebbles | rounded {c} stones
        | rounded {c} pebbles | angular {c} stones | sharp {c} stones | split stone | quarry stone | quarry waste
        | roadstone | road metal | unpaved {c} road | dirt road with {c} stones | garden path of {c} pebbles
        | gravel walkway | courtyard with {c} gravel | parking lot of {c} gravel | landscaping stones
        | decorative {c} stones | aquarium gravel | granite chips | limestone chips | slate chips | marble chips
        | flint | rock debris | debris of {c} rock | crumbled {c} rock | stone bits | rock bits | bits of {c} stone
        | lots of {c} stones | loose {c} rock | mixed {c} stones | coarse {c} stones | gravelly soil | mineral aggregate
        | stone layer | rough {c} ground of stones"""),
}  # fmt: skip
COLOURS = {
    "red": "red | reddish | crimson | rust-red | ruddy | scarlet | terracotta | maroon | rust-coloured | russet"
    "| cherry"
    "| blood-red | burgundy | vermilion | coral | rosy | carmine | orange-red | redish | brick-red",
    "yellow": "yellow | yellowish | golden | ochre | mustard | straw-coloured | buff | cream-coloured | honey-coloured"
    "| amber | lemon | sand-coloured | gold | mustard-coloured | blond | canary | tan-yellow | warm yellow | yelow",
    "gray": "gray | grey | grayish | greyish | ash-coloured | slate-gray | silver | colourless | monochrome"
    "| gray-toned"
    "| black-and-white | smoky | leaden | ashen | neutral gray | silvery | concrete-gray | uncoloured | grayscale"
    "| drab gray",
    "green": "green | lush | fresh | verdant | emerald | bright green | juicy green | leafy | deep green | greenish"
    "| healthy green | spring | jade | olive | well-watered | vivid green | lime-green | dark green | gren",
    "dry": "dry | withered | parched | dried-out | dried | dead | wilted | scorched | sunburnt | yellowed | thirsty"
    "| drought-stricken | shrivelled | autumn | hay-coloured | burnt | crisp brown | desiccated | faded | arid | brown",
    "brown": "brown | brownish | tan | beige | earthy | chestnut | tawny | muddy | earth-coloured | hazel | sandy"
    "| chocolate-coloured | coffee-coloured | umber | sepia | bronze | caramel | wood-coloured | khaki | browny",
    "blue": "blue | bluish | azure | sky-blue | cobalt | indigo | steel-blue | navy | blue-toned | cyan | ultramarine"
    "| sapphire | denim-blue | cool blue | ice-blue | blueish | marine blue | aqua | cerulean | teal",
}
SHADES = {
    "bright": "bright | light | white | shiny | glowing | light-coloured | snow-white | brilliant | luminous | lighter"
    "| very bright | very light | gleaming | milky | chalky | chalk-white | ivory | glaring | bleached | bleached-out"
    "| snowy | pure white | off-white | cream-coloured | radiant | light-toned | shining | glossy | silvery | pearly"
    "| overexposed | sunlit | glinting | light gray | faded | bone-white | frosty | eye-catching white | vivid white"
    "| clear white | brightly visible | blinding | dazzling | lightened | washed-out",
    "dark": "dark | black | darker | inky | sooty | dark-coloured | jet-black | murky | deep black | shadowy"
    "| very dark"
    "| pitch-black | charcoal | ebony | almost black | nearly black | dark gray | dark-toned | darkened | gloomy"
    "| tarry"
    "| coal-black | ink-black | deep | dusky | burnt | blackened | midnight-black | raven | unlit | brown-black"
    "| somber"
    "| deep-toned | pure black | coal-coloured | shaded | dark brown | night-black | sable | graphite-coloured"
    "| carbonised"
    "| low-lit | intense black | obscure | umbral",
}
COLOURS, SHADES = ({name: split(text) for name, text in lists.items()} for lists in (COLOURS, SHADES))
# What a defect is called, by the shade that the name implies.
NAMES = {
    "scratch": {
        None: split("""scratch | scratched line | thin scratch | long scratch | line | cut | score mark | crack | groove
            | slash | gash | stroke | thin curve | hairline | stripe | trace of a nail | abrasion line | fissure | scar
            | pen line | narrow mark | wire | thread | incision | scratch mark | scratches | lines | linear mark
            | linear defect | thin line | long line | fine line | curved line | wavy line | crooked line | scribble
            | drawn line | scored line | etched line | engraved line | carved line | knife mark | knife cut | nail mark
            | claw mark | claw marks | key mark | needle mark | blade mark | cat scratch | fine crack | thin crack
            | hairline crack | long crack | split | rift | crevice | furrow | rut | notch | nick | slit | thin slit
            | gouge | long gouge | thin gouge | laceration | scratchy line | scratching | elongated flaw
            | line-shaped flaw
            | line-like defect | thin trail | track | filament | hair | strand | string | thin stripe | narrow stripe
            | narrow band | brush stroke | pencil line | stroke of a pen | marker line | squiggle | curl of wire
            | sharp line | thin trace | graze | long graze | vein | scrach"""),
        "bright": split("""chalk line | line of chalk | white pen stroke | line of white paint
            | fresh scratch that shines
            | shiny cut | line of light | thin ray of light | silver wire | spider thread"""),
        "dark": split("""pencil stroke | line of ink | ink line | line drawn in black | charcoal line | black thread
            | black wire | dark crack | black hair | tar line"""),
    },
    "stain": {
        None: split("""stain | spot | stained area | round stain | splash | patch | blot | splotch | soiled area | spill
            | paint stain | blemish | tinge | stained patch | speck of paint | wet patch | smirch
            | disc | cloud | spotted area | stained spot | round spot | round patch | big spot | large spot | round mark
            | oval mark | oval spot | round area | circle | circular patch | circular spot | ellipse | blob | dab
            | dab of paint | daub | drop of paint | splatter | spatter | paint splash | paint spill | paint blob
            | pool of paint | puddle | pool | fleck | dot | big dot | freckle | mottle | tint | tinted area
            | tinted spot
            | coloured spot | coloured patch | area of another colour | spot of another colour | off-colour spot
            | change of colour | round blemish | staining | stain mark | stains | spots | watermark | water stain
            | water mark | liquid stain | chemical stain | contamination | contaminated spot | residue | deposit
            | patch of residue | patch of paint | overlay of paint | round tint | birthmark | halo | spreading stain
            | spread-out stain | splash mark | drip | drips | fluid mark | wet spot | damp spot | stane"""),
        "bright": split("""bleach stain | bleached area | salt stain | salt deposit | patch of light | spot of light
            | splash of milk | milk stain | bird droppings | splash of white paint | chalk patch | spot of snow
            | frost patch
            | spilled milk | white dust patch | flour stain | lime deposit | sun patch | lightened area
            | glare spot"""),
        "dark": split("""dirt mark | oil spot | oil stain | area of dirt | shadow | coffee stain | ink blot | ink stain
            | grease stain | grease spot | soot mark | mud stain | muddy patch | burn mark | scorch mark | tar spot
            | filth
            | grime | dirty spot | dirty patch | dirt | wine stain | blood stain | rust stain | mould spot
            | mildew patch
            | oil leak | oil spill | spilled coffee | spilled ink | spilled oil | soy sauce stain | shaded patch
            | darkened area | round shadow | shade | petrol stain | fuel stain | damp patch | moisture stain"""),
    },
    "hole": {None: split("""hole | black hole | small hole | small black hole | gap | opening | pit | perforation | bore
            | hollow | bullet hole | round gap | missing piece | deep pit | nail hole | void | crater | burrow
            | tiny pit
            | empty spot | round black opening | dent that goes through | pinhole | holes | little hole | tiny hole
            | round hole | deep hole | dark hole | circular hole | screw hole | borehole | peephole | bored hole
            | hole punched through | punched hole | punch hole | pierced spot | piercing | pierced hole | gunshot hole
            | bullet mark | shot hole | wormhole | worm hole | mouse hole | rabbit hole | animal burrow | insect hole
            | woodpecker hole | knothole | dent | deep dent | dip | sunken spot | depression | recess | socket | pocket
            | cave | small cave | tunnel | tunnel entrance | shaft | well | vent | aperture | orifice | eyelet | mouth
            | outlet | breach | break-through | cut-out | hole that goes through | hole straight through
            | place with nothing
            in it | missing bit | missing part | missing chunk | lost piece | bit that fell out | pothole | sinkhole
            | excavation | dugout | dug hole | pore | open pore | air pocket | leak | through-hole | hol | nothingness
            | black round opening | black pit | chasm | abyss | gaping hole""")},
    "smear": {None: split("""smear | blurred spot | smeared area | blurry patch | blur | unsharp area | blurred region
            | soft spot without detail | wiped area | hazy patch | foggy spot | indistinct area | place that lost its
            sharpness | softened region | smoothed area | washed-out place | misty area | defocused part | smeared place
            | part that was wiped | fogged patch | area without texture | blurred zone | blurred area | blurred patch
            | blurred part | blurry spot | blurry area | blurry part | blurry region | blurry zone | unsharp spot
            | unsharp patch | unfocused spot | unfocused area | defocused area | defocused region | poorly focused part
            | loss of focus | lack of sharpness | lack of detail | loss of detail | haze | fog | mist | patch of fog
            | vaseline | grease film | wiped spot | wiped patch | swipe | wipe mark | wipe | smeared patch
            | smeared spot
            | smeared region | smear mark | smearing | smeary area | soft-focus area | soft focus | soft area | softness
            | soft patch | soft blur | gaussian blur | motion blur | local blur | smooth patch | smooth area
            | too smooth area | polished area | washed area | faded detail | vague area | vague patch | vague spot
            | unclear area | unclear spot | unclear patch | unclear region | ill-defined area | muddled area | hazy area
            | hazy region | cloudy blur | bleary patch | ground-glass patch | frosted-glass patch | milky haze
            | fingerprint on the lens | thumb mark on the lens | wet-lens blur | detail that melted away | melted area
            | area like seen through fog | low-resolution patch | pixels mixed together | finger swipe
            | area wiped with a cloth | blured area""")},
}  # fmt: skip
# A word before the material that says the defect.
ADJECTIVES = {
    "scratch": "scratched | scored | gouged | cracked | slashed | scratchy | grooved | clawed | slit",
    "stain": "stained | soiled | spotted | dirty | paint-splashed | ink-stained | oil-stained | splattered"
    "| contaminated",
    "hole": "perforated | pierced | holed | pitted | hole-ridden | bullet-riddled | punched-through | hollowed-out"
    "| bored",
    "smear": "blurred | smeared | blurry | hazy | smeary | locally blurred | unsharp | foggy | partly blurred",
}
# Sentences of the material and a defect, with the shade that they imply.
SENTENCES = {
    "scratch": """someone dragged a nail along {m} | a key was pulled over {m} | {m} got scratched | a knife has cut {m}
        | a cat clawed {m} | somebody drew a line on {m} | a line runs through {m} | {m}, scratched from left to right
        | {m} is scratched | a sharp object went over {m} | {m} scored with a blade
        | something sharp left its trace on {m}
        | a fine line crosses {m} | {m} split by a thin line | a thin crack runs along {m} | {m} with scratching
        | a wire lies on {m} | a thread lies on {m} | {m}, cut | {m} with a line through it""",
    "stain": """someone spilled paint on {m} | oil was spilled on {m} | ink has dripped on {m} | {m} got stained
        | {m} is stained | coffee on {m} | paint on {m} | oil on {m} | {m}, stained in one place
        | {m} is dirty in one place
        | {m} soiled with grease | something spilled over {m} | {m} splashed with paint | {m} soaked in one spot
        | a round area of {m} has another colour | {m} changed its colour in one place | dirt on {m} | grease on {m}
        | a shadow lies on {m} | {m} with paint on it""",
    "hole": """something went through {m} | someone punched a hole in {m} | a bullet hit {m} | a piece of {m} is missing
        | {m} has been pierced | {m} with a bit missing | an animal has dug into {m} | {m} is perforated
        | someone bored into {m} | a nail was pulled out of {m} | {m}, pierced | {m} with something missing
        | part of {m} is gone | you can look through {m} in one place | {m} opens up in one place
        | a chunk broke out of {m}
        | {m} caved in at one spot | a shot went through {m} | someone dug a hole into {m} | a piece fell out of {m}""",
    "smear": """the camera lost its focus on part of {m} | someone wiped over {m} | {m} is blurred in one place
        | part of {m} is blurry | {m} is partly unsharp | {m} seen through a greasy lens | fog hides a part of {m}
        | a part of {m} lost its detail | {m} looks smeared in one spot | {m}, wiped | {m}, blurred
        | {m}, partly blurred
        | a finger smeared {m} | one part of {m} is unclear | {m} melts together in one place | {m} is hazy in one area
        | one region of {m} is soft and without detail | {m} with some of it blurred | a cloth was wiped over {m}
        | {m} blurs in one place""",
}
ADJECTIVES, SENTENCES = ({name: split(text) for name, text in lists.items()} for lists in (ADJECTIVES, SENTENCES))
PLAIN = split("""{m} | clean {m} | {m} without defect | {m}, nothing else | {m} with no flaws | spotless {m}
    | undamaged {m} | just {m} | {m} without any damage | {m} in good shape | intact {m} | normal {m} | only {m}
    | {m} as it should be | faultless {m} | {m}, no damage | ordinary {m} | unblemished {m} | {m} without faults
    | {m} without any flaw | {m} without scratches, stains or holes | {m} with no scratch on it | {m} with no stains
    | {m}, no holes | {m} and nothing on it | {m} free of defects | defect-free {m} | {m} free from damage
    | {m}, all fine
    | {m} that passes inspection | {m} with nothing wrong | good {m} | good-quality {m} | {m} in good condition
    | {m} of good quality | unharmed {m} | untouched {m} | regular {m} | typical {m} | usual {m} | standard {m}
    | plain {m} | simple {m} | pristine {m} | immaculate {m} | unspoiled {m} | unmarked {m} | unscratched {m}
    | unstained {m} | tidy {m} | neat {m} | new {m} | brand-new {m} | well-kept {m} | {m} in order | {m}, okay
    | {m} is fine | {m} looks good | {m} looks normal | {m} has no defect | {m} has nothing wrong | {m}, clean
    | {m}, undamaged | {m}, intact | {m} everywhere | uniform {m} | even {m} | sound {m} | healthy-looking {m}
    | unbroken {m} | whole {m} | {m} with nothing unusual | {m}, nothing special | everyday {m} | nothing but {m}
    | {m} and that is all | {m} without blemish | {m} without anomalies | non-defective {m} | non-damaged {m}
    | {m} passed as good | an accepted sample of {m} | perfectly fine {m} | flaw-free {m} | {m} with zero defects
    | {m} not damaged at all | {m} that nobody touched""")
WITH = split("""{m} with {d} | {d} on {m} | {m}, {d} | {m} that has {d} | {m} marred by {d} | {m} and {d}
    | {d} in the middle of {m} | {m} where one sees {d} | {m} spoiled by {d} | {d}, on {m} | a defect: {d}, on {m}
    | {m} has {d} | we see {m} with {d} on it | {d} in {m} | {m} with {d} in it | {d} over {m} | faulty {m}: {d}
    | {d} can be seen on {m} | on {m} there is {d} | {m} bearing {d} | {m} carrying {d} | {m} containing {d}
    | {m} including {d} | {m} plus {d} | {m}; {d} | {m}: {d} | {m} - {d} | {d} - {m} | {d} {m} | {m} {d}
    | {d} somewhere on {m} | {d} somewhere in {m} | {d} at the centre of {m} | {d} near the edge of {m}
    | {d} visible on {m} | visible {d} on {m} | {m} with visible {d} | {m} with noticeable {d} | {m} with one {d}
    | {m} with {d} as its defect | {m}, defective because of {d} | defective {m} with {d} | damaged {m} with {d}
    | damaged {m}, {d} | broken {m} with {d} | flawed {m} with {d} | {m} flawed by {d} | {m} disfigured by {d}
    | {m} interrupted by {d} | {m} covered in part by {d} | {m} ruined by {d} | {m} affected by {d}
    | {m} suffering from {d}
    | {m} featuring {d} | {m} displaying {d} | {m} revealing {d} | {m} having {d} | {m} which has {d}
    | {m} that shows {d}
    | {m} shows {d} | {m} got {d} | {d} spoils {m} | {d} disturbs {m} | {d} mars {m} | {d} appears on {m}
    | {d} lies on {m} | {d} has appeared in {m} | there is {d} on {m} | there's {d} in {m} | there are {m} with {d}
    | look at {d} on {m} | notice {d} on {m} | one can see {d} on {m} | you can see {d} in {m} | I found {d} on {m}
    | inspection found {d} on {m} | anomaly on {m}: {d} | rejected {m} because of {d} | {d} as an anomaly in {m}
    | {m} not clean but with {d} | {m}, except for {d} | otherwise clean {m} with {d} | clean {m} apart from {d}
    | {m} together with {d} | {m} along with {d} | {d} upon {m} | {d} within {m} | {d} inside {m} | {d} set in {m}
    | {d} surrounded by {m} | {d} against {m} | {d} left on {m} | {d} made in {m}""")  # fmt: skip
FRAMES = split("""{x} | a photo of {x} | a close-up of {x} | a picture of {x} | a view of {x} | a texture of {x}
    | a sample of {x} | photograph of {x} | close-up: {x} | macro shot of {x} | macro photo of {x} | snapshot of {x}
    | a detailed photo of {x} | high-resolution photo of {x} | please draw {x} | draw {x} | generate {x} | show me {x}
    | I want to see {x} | I need a photo of {x} | give me {x} | make {x} | create a picture of {x} | render {x}
    | can you draw {x} | could you make a photo of {x} | a scene of {x} | top view of {x} | {x} seen from above
    | {x} seen up close | {x}, close up | {x}, photographed in daylight | {x}, detailed | {x}, realistic photo | {x}, 4k
    | {x} as a texture | {x} as background | texture: {x} | an inspection photo of {x} | a test sample: {x}
    | one photo with {x} | this is {x} | here we have {x} | it shows {x} | a camera looks at {x} | an example of {x}
    | a depiction of {x} | an illustration of {x} | visualise {x} | some {x}""")  # fmt: skip


def core(phrase):
    """A phrase without articles, slots and punctuation, with a space at both ends."""
    for slot in ("{c}", "{s}", "{m}", "{d}", "{x}"):
        phrase = phrase.replace(slot, " ")
    words = "".join(letter if letter.isalnum() else " " for letter in phrase.lower()).split()
    return f" {' '.join(word for word in words if word not in ('a', 'an', 'the'))} "


def check():
    """Raises ValueError if a phrase above has a phrase of the test in it."""
    test = {core(phrase) for phrases in PARAPHRASES.values() for phrase in phrases}
    test |= {core(phrase) for phrase in (*PARAPHRASED_PLAIN, *PARAPHRASED_WITH)}
    lists = [*MATERIALS.values(), *COLOURS.values(), *SHADES.values(), *ADJECTIVES.values(), *SENTENCES.values()]
    lists += [phrases for names in NAMES.values() for phrases in names.values()] + [PLAIN, WITH, FRAMES]
    for phrase in (phrase for phrases in lists for phrase in phrases):
        if found := [one for one in test if one in core(phrase)]:
            raise ValueError(f"{phrase!r} has {found[0].strip()!r} in it, which is for the test")


def target(texture, tint, defect, shade):
    """The caption that the denoiser is given for a paraphrase. `tint` and `defect` may be None."""
    m = textures.WORDS[texture][0].format(c=tint or "")
    text = f"{m} with {DRAWN[defect].format(s=shade)}" if defect else m
    return " ".join(text.split())


def paraphrase(texture, tint, defect, shade, rng):
    """Random words for the `target` of the same arguments. They may leave the usual shade of a defect out."""

    def pick(options):
        return options[rng.integers(len(options))]

    def noun(phrase, slot, word):
        return with_article((phrase if slot in phrase else f"{slot} {phrase}").replace(slot, word), rng)

    m, form = noun(pick(MATERIALS[texture]), "{c}", pick(COLOURS[tint]) if tint else ""), rng.random()
    shaded, usual = defect in USUAL, USUAL.get(defect, shade) == shade
    if defect is None:
        text = pick(PLAIN).format(m=m)
    elif form < NAMED or not usual:
        implied = shade if shaded and rng.random() < IMPLIED else None
        word = pick(SHADES[shade]) if shaded and not implied and not (usual and rng.random() < 0.5) else ""
        text = pick(WITH).format(m=m, d=noun(pick(NAMES[defect][implied]), "{s}", word))
    elif form < NAMED + ADJECTIVE:
        text = f"{pick(ADJECTIVES[defect])} {m}"
    else:
        text = pick(SENTENCES[defect]).format(m=m)
    if rng.random() < FRAMED:
        text = pick(FRAMES).format(x=text)
    text = " ".join(text.split()).replace(" ,", ",")
    return with_typo(text, rng) if rng.random() < TYPO else text


def with_article(phrase, rng):
    """Puts a random article, or none, before a phrase that has none."""
    phrase = phrase.strip()
    if phrase.startswith("the "):
        return phrase
    head = phrase.split(" of ")[0].split(" with ")[0].split(" in ")[0]
    plural = head.endswith("s") and not head.endswith("ss")
    article = ("", "", "", "the", "some") if plural else ("an" if phrase[0] in "aeiou" else "a", "the", "", "")
    return f"{article[rng.integers(len(article))]} {phrase}"


def with_typo(text, rng):
    """Leaves out a letter, or swaps it with the next."""
    i = rng.integers(1, len(text) - 2)
    return text[:i] + text[i + 1] + (text[i] if rng.random() < 0.5 else "") + text[i + 2 :]


def pairs(count, rng):
    """-> [(caption, paraphrase)]: each defect equally often, KNOWN of them with words as in training."""
    kinds = [
        (texture, tint, defect, shade)
        for texture in TEXTURES
        for tint in (*TINTS[texture], None)
        for defect in (None, *DEFECTS)
        for shade in ("bright", "dark")  # which other defects do not have
    ]
    found = {}
    while len(found) < count:
        kind = kinds[len(found) % len(kinds)]
        text = paraphrase(*kind, rng) if rng.random() >= KNOWN else known(*kind, rng)
        if len(text.split()) <= MOST_WORDS:
            found.setdefault(text, target(*kind))
    return [(caption, text) for text, caption in found.items()]


def known(texture, tint, defect, shade, rng):
    """A random caption as in training that names the tint, if there is one."""
    while True:
        text = caption(texture, tint or "", defect, shade, rng)
        if not tint or tint in text.split():
            return text


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, required=True, help="CSV file for the pairs")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    check()
    with open(args.out, "w", newline="") as f:
        lines = csv.writer(f)
        lines.writerow(["caption", "paraphrase"])
        lines.writerows(pairs(PAIRS, np.random.default_rng(args.seed)))


if __name__ == "__main__":
    main()
