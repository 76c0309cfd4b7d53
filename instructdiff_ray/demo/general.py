"""Everyday requests: rewriting, summaries, letters, explanations, lists, stories and the like."""

from __future__ import annotations

from random import Random

from instructdiff_ray.demo.words import (
    COUNTS,
    MONTHS,
    NAMES,
    TOWNS,
    WEEKDAYS,
    WORDS,
    Kind,
    Pair,
    article,
    bullets,
    capital,
    listed,
    numbered,
    split,
    table,
)

# casual phrase: polite phrase
PHRASES = table("""
can you send me {} before {}: Could you please send me {} before {}?
i need {} on {}: I would be grateful to receive {} on {}.
where is {}, we need it on {}: Could you kindly tell me where {} is? We will need it on {}.
dont forget {} on {}: Please remember to bring {} on {}.
gimme {} by {}: May I please have {} by {}?
sorry, lost {} on {}: I sincerely apologise for having lost {} on {}.
thanks for {} on {}: Thank you very much for {} on {}.
you forgot {} again on {}: I noticed that {} was not included again on {}.
""")
OBJECTS = split(
    "the report, the ticket, the key, the invoice, the contract, the photo, the parcel, "
    "the schedule, the map, the recipe, the drawing, the camera",
    ",",
)
# infinitive, past, participle and object of a verb
VERBS = (
    ("paint", "painted", "painted", "the fence"),
    ("write", "wrote", "written", "a long letter"),
    ("sing", "sang", "sung", "an old song"),
    ("repair", "repaired", "repaired", "the clock"),
    ("bake", "baked", "baked", "a loaf of bread"),
    ("draw", "drew", "drawn", "a map of the town"),
    ("find", "found", "found", "the missing key"),
    ("sell", "sold", "sold", "the blue bicycle"),
    ("choose", "chose", "chosen", "the winner"),
)
# what, what happened, people, extra
EVENTS = (
    ("a new library", "opened", "readers", "free courses"),
    ("a street market", "took place", "visitors", "local cheese and honey"),
    ("a bridge", "was reopened", "commuters", "a wider cycle lane"),
    ("a music festival", "was held", "guests", "three open stages"),
    ("a school garden", "was planted", "pupils", "herbs and fruit trees"),
    ("a science fair", "ended", "students", "a prize for the best robot"),
    ("a night train", "started", "passengers", "cheap beds"),
)
REPORT = (
    "In {month}, {what} {happened} in {town}. About {number} {people} came on the first day. "
    "{name}, who led the project, said that the work had taken {years} years and that many "
    "neighbours had helped. The programme offers {extra}. The town council plans to go on next "
    "year if the budget allows it."
)
SUMMARY = (
    "After {years} years of work led by {name}, {what} {happened} in {town} in {month}, drawing "
    "about {number} {people}."
)
FACTS = "Place: {town}\nMonth: {month}\nPeople: {number}"
# subject: body of a letter
LETTERS = table("""
an apology for missing {what}: I am sorry that I missed {what} on {day}. The reason was {why}.
an invitation to {what}: You are invited to {what} on {day}. We will be {count} people in all.
a request to move {what}: Because of {why} I cannot come on {day}. Could we move {what} a week?
a note of thanks for {what}: Thank you for {what} on {day}. I owe you {count} cups of coffee.
""")
CLOSINGS = (
    "I hope we can find a date that suits you.",
    "Please let me know what you think.",
    "I would be glad to talk about it on the phone.",
    "You can reach me every evening.",
)
OCCASIONS = ("the meeting", "the dinner", "the workshop", "the rehearsal", "the tour", "the lesson")
REASONS = split(
    "a broken pipe, a family visit, a missed train, a medical check, a move, heavy snow, a fair",
    ",",
)
TOPICS = table("""
rain: Water rises as vapour. High up it cools and forms drops. Heavy drops fall as rain.
a rainbow: Sunlight enters drops of rain. Each drop bends the colours. White light spreads out.
photosynthesis: Plants take in light and water. They make sugar. Oxygen is given off.
the tides: The moon pulls at the sea. Water gathers on two sides. The earth turns below it.
inflation: Prices rise over time. Money then buys less. Higher interest rates can slow it.
a magnet: Iron is full of tiny magnets. When they line up, their forces add. Then it attracts.
yeast: Yeast feeds on sugar in the dough. It gives off gas. The gas makes the dough swell.
an echo: Sound travels as waves. A wall throws them back. We hear the sound again.
recycling: Used things are collected and sorted. They are broken down. New things are made.
the seasons: The axis of the earth is tilted. One half leans to the sun. That half has summer.
a battery: Two metals stand in a paste. One gives electrons to the other. This is the current.
a vote: People choose between options. Every voice counts once. The most votes win.
""")
AUDIENCES = ("a child", "a beginner", "my grandmother", "a visitor", "a curious friend", "a class")
LISTS = table("""
things to pack for a hike: water, a map, a warm jacket, snacks, a torch, plasters, a hat
ways to save energy: turn off lights, dry clothes outside, lower the heating, seal windows
ideas for a rainy day: read a novel, bake biscuits, build a puzzle, visit a museum, sort photos
presents for a gardener: gloves, a watering can, seeds, a sharp knife, a bird house, a straw hat
topics for a first talk: travel, food, music, the weather, books, pets, sports, films
habits of a good listener: keep eye contact, ask questions, nod now and then, sum up, wait
animals that live near water: otter, heron, frog, beaver, duck, dragonfly, turtle, newt
steps to plan a party: set a date, write invitations, choose a place, plan food, pick music
""")
# thing, then how it does on cost, speed, upkeep and fun from 1 to 5
THINGS = (
    ("a bicycle", (2, 3, 2, 4)),
    ("a bus", (1, 2, 1, 2)),
    ("a train", (3, 4, 1, 3)),
    ("a car", (5, 5, 5, 3)),
    ("a boat", (4, 1, 4, 5)),
    ("a taxi", (4, 4, 1, 1)),
    ("a horse", (5, 2, 5, 4)),
)
TRAITS = (
    ("costs more", "costs less"),
    ("is faster", "is slower"),
    ("needs more upkeep", "needs less upkeep"),
    ("is more fun", "is less fun"),
)
USES = ("daily trips", "a weekend away", "getting to school", "visiting a friend")
PRODUCTS = split("kettle backpack tent headset keyboard blanket blender jacket suitcase desk")
PRAISE = ("works perfectly", "looks great", "arrived early", "is very sturdy", "was a bargain")
BLAME = ("broke after a week", "smells odd", "came too late", "feels cheap", "is far too loud")
HEROES = split("fox, baker, sailor, robot, young violinist, retired teacher, owl, inventor", ",")
FINDS = ("a silver key", "an old letter", "a broken compass", "a blue lantern", "a lost puppy")
SETTINGS = split("forest, harbour, market, mountain village, abandoned station, library", ",")
STORY = (
    "One {day} {name}, {hero}, walked through the {place} and stumbled over {found}. Nobody knew "
    "whom it belonged to. {name} asked everyone, until {friend} remembered a stranger who had come "
    "by {years} years ago. Together they set out and followed every trace. In the evening they met "
    "the owner, who laughed and cried at once. From that day on, the {place} felt like home to "
    "{name}."
)
DISHES = (
    ("vegetable soup", ("chop {}", "fry an onion", "add water", "simmer for {} minutes")),
    ("a salad", ("wash {}", "cut everything small", "add lemon juice", "chill for {} minutes")),
    ("an oven dish", ("slice {}", "fill a form", "add cream", "bake for {} minutes")),
)
PRODUCE = split("carrots leeks apples pears potatoes plums beans tomatoes pumpkins beets")


def _polite(rng: Random) -> Pair:
    (casual, formal), thing = rng.choice(PHRASES), rng.choice(OBJECTS)
    name, day = rng.choice(NAMES), rng.choice(WEEKDAYS)
    request = rng.choice(("Make this message more polite.", "Rewrite the message formally."))
    return (
        request,
        f"hey {name}, {casual.format(thing, day)}",
        f"Dear {name},\n{formal.format(thing, day)}",
    )


def _grammar(rng: Random) -> Pair:
    verb, past, participle, thing = rng.choice(VERBS)
    name, day = rng.choice(NAMES), rng.choice(WEEKDAYS)
    told = f"{name} {past} {thing} on {day}."
    if rng.random() < 0.5:
        passive = f"{capital(thing)} was {participle} by {name} on {day}."
        return "Put the sentence into the passive voice.", told, passive
    return "Put the sentence into the past tense.", f"{name} will {verb} {thing} on {day}.", told


def _report(rng: Random) -> Pair:
    what, happened, people, extra = rng.choice(EVENTS)
    facts = {
        "what": what,
        "happened": happened,
        "people": people,
        "extra": extra,
        "town": rng.choice(TOWNS),
        "month": rng.choice(MONTHS),
        "number": rng.randint(2, 90) * 50,
        "name": rng.choice(NAMES),
        "years": rng.choice(COUNTS[2:]),
    }
    request, answer = rng.choice(
        (
            ("Summarise the text in one sentence.", SUMMARY),
            ("Give the gist of the report.", SUMMARY),
            ("Extract the place, the month and the number of people as three lines.", FACTS),
        )
    )
    return request, REPORT.format(**facts), answer.format(**facts)


def _letter(rng: Random) -> Pair:
    (sender, reader), (subject, body) = rng.sample(NAMES, 2), rng.choice(LETTERS)
    facts = {
        "what": rng.choice(OCCASIONS),
        "day": rng.choice(WEEKDAYS),
        "why": rng.choice(REASONS),
        "count": rng.choice(COUNTS[2:]),
    }
    request = f"Write {subject.format(**facts)} on {facts['day']}. {sender} writes to {reader}."
    if "{why}" in body:
        request += f" Mention {facts['why']}."
    closing = " ".join(rng.sample(CLOSINGS, rng.randint(0, 2)))
    text = f"{body.format(**facts)} {closing}".strip()
    return request, "", f"Dear {reader},\n\n{text}\n\nKind regards,\n{sender}"


def _explanation(rng: Random) -> Pair:
    (topic, text), audience, number = rng.choice(TOPICS), rng.choice(AUDIENCES), rng.randint(1, 3)
    facts = text.removesuffix(".").split(". ")[:number]
    request = f"Explain {topic} to {audience} in {COUNTS[number]} sentence{'s' * (number > 1)}."
    return request, "", ". ".join(facts) + "."


def _ideas(rng: Random) -> Pair:
    topic, entries = rng.choice(LISTS)
    left_out, *rest = rng.sample(split(entries, ","), rng.randint(3, 4))
    request = f"{rng.choice(NAMES)} asks for {topic}. List {COUNTS[len(rest)]}."
    if rng.random() < 0.5:
        request += f" Do not name {left_out!r}."
    return request, "", rng.choice((bullets, numbered))(rest)


def _comparison(rng: Random) -> Pair:
    (one, a), (two, b) = rng.sample(THINGS, 2)
    told = [
        more if x > y else less for (more, less), x, y in zip(TRAITS, a, b, strict=True) if x != y
    ]
    use, better = rng.choice(USES), one if a[3] - a[0] > b[3] - b[0] else two
    response = f"Compared with {two}, {one} {listed(told)}. For {use} I would choose {better}."
    return f"Compare {one} with {two} for {use}.", "", response


def _review(rng: Random) -> Pair:
    product, month = rng.choice(PRODUCTS), rng.choice(MONTHS)
    good, bad = rng.sample(PRAISE, 2), rng.sample(BLAME, 2)
    mood, (first, second), link = rng.choice(
        (("positive", good, "and"), ("negative", bad, "and"), ("mixed", (good[0], bad[0]), "but"))
    )
    text = f"I bought this {product} in {month}. It {first}, {link} it {second}."
    if rng.random() < 0.5:
        return "Is the review positive, negative or mixed? Answer in one word.", text, capital(mood)
    reason = f"The review of the {product} is {mood}, because it {first} {link} {second}."
    return "Classify the review as positive, negative or mixed, and say why.", text, reason


def _story(rng: Random) -> Pair:
    hero, found, place = rng.choice(HEROES), rng.choice(FINDS), rng.choice(SETTINGS)
    name, friend = rng.sample(NAMES, 2)
    day, years = rng.choice(WEEKDAYS), rng.choice(COUNTS[2:])
    request = (
        f"Write a short story about {name}, {article(hero)} who finds {found} in {article(place)}."
    )
    response = STORY.format(
        hero=article(hero), found=found, place=place, name=name, friend=friend, day=day, years=years
    )
    return request, "", response


def _ordering(rng: Random) -> Pair:
    words = rng.sample(WORDS + PRODUCE + PRODUCTS, rng.randint(3, 8))
    request = rng.choice(("Sort these words alphabetically.", "Order the words from A to Z."))
    return request, ", ".join(words), ", ".join(sorted(words))


def _recipe(rng: Random) -> Pair:
    (dish, steps), produce = rng.choice(DISHES), listed(rng.sample(PRODUCE, 2))
    minutes, people = 5 * rng.randint(3, 12), rng.randint(2, 8)
    lines = [capital(step.format(minutes if "minutes" in step else produce)) for step in steps]
    request = f"How do I make {dish} with {produce} for {people} people in {minutes} minutes?"
    return request, "", f"Take about {people * 150} grams of {produce}.\n{numbered(lines)}"


KINDS: tuple[Kind, ...] = (
    _polite,
    _grammar,
    _report,
    _report,
    _letter,
    _explanation,
    _ideas,
    _comparison,
    _review,
    _story,
    _ordering,
    _recipe,
)


def pair(rng: Random) -> Pair:
    """Draw one request and its answer."""
    return rng.choice(KINDS)(rng)
