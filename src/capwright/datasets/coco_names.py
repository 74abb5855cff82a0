"""Class names of COCO and COCO-Stuff, and the ids they have in the files.

COCO numbers its 80 things 1 to 90, with ten numbers unused; COCO-Stuff adds 91 kinds of stuff as 92
to 182. The label pictures of COCO-Stuff hold the id minus 1, and 255 where nothing is labelled.
"""


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(";"))


THINGS = _names(
    """person; bicycle; car; motorcycle; airplane; bus; train; truck; boat; traffic light;
    fire hydrant; stop sign; parking meter; bench; bird; cat; dog; horse; sheep; cow; elephant;
    bear; zebra; giraffe; backpack; umbrella; handbag; tie; suitcase; frisbee; skis; snowboard;
    sports ball; kite; baseball bat; baseball glove; skateboard; surfboard; tennis racket; bottle;
    wine glass; cup; fork; knife; spoon; bowl; banana; apple; sandwich; orange; broccoli; carrot;
    hot dog; pizza; donut; cake; chair; couch; potted plant; bed; dining table; toilet; tv; laptop;
    mouse; remote; keyboard; cell phone; microwave; oven; toaster; sink; refrigerator; book; clock;
    vase; scissors; teddy bear; hair drier; toothbrush"""
)
STUFF = _names(
    """banner; blanket; branch; bridge; building-other; bush; cabinet; cage; cardboard; carpet;
    ceiling-other; ceiling-tile; cloth; clothes; clouds; counter; cupboard; curtain; desk-stuff;
    dirt; door-stuff; fence; floor-marble; floor-other; floor-stone; floor-tile; floor-wood; flower;
    fog; food-other; fruit; furniture-other; grass; gravel; ground-other; hill; house; leaves;
    light; mat; metal; mirror-stuff; moss; mountain; mud; napkin; net; paper; pavement; pillow;
    plant-other; plastic; platform; playingfield; railing; railroad; river; road; rock; roof; rug;
    salad; sand; sea; shelf; sky-other; skyscraper; snow; solid-other; stairs; stone; straw;
    structural-other; table; tent; textile-other; towel; tree; vegetable; wall-brick; wall-concrete;
    wall-other; wall-panel; wall-stone; wall-tile; wall-wood; water-other; waterdrops; window-blind;
    window-other; wood"""
)
UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)  # of 1 to 91
THING_IDS = tuple(number for number in range(1, 91) if number not in UNUSED_IDS)
STUFF_IDS = tuple(range(92, 183))
