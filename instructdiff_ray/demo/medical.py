"""Harmless, generic health questions: self-care and when to see a doctor, terms, first aid.

The advice is common knowledge in general words, made up for a demo, and no medical guidance.
"""

from __future__ import annotations

from random import Random

from instructdiff_ray.demo.words import (
    COUNTS,
    MONTHS,
    NAMES,
    WEEKDAYS,
    Kind,
    Pair,
    bullets,
    capital,
    listed,
    numbered,
    table,
)

# symptom, usual causes, things that help, signs that call for a doctor
SYMPTOMS = (
    (
        "a sore throat",
        ("a cold", "dry air", "a strained voice"),
        ("drink warm tea", "gargle with salt water", "rest the voice", "suck on lozenges"),
        ("trouble swallowing", "a high fever", "a rash"),
    ),
    (
        "a headache",
        ("stress", "too little water", "tired eyes", "a lack of sleep"),
        ("drink a glass of water", "rest in a dark room", "take breaks from screens"),
        ("a sudden very strong pain", "a stiff neck", "blurred vision"),
    ),
    (
        "a runny nose",
        ("a cold", "an allergy", "cold air"),
        ("use soft tissues", "rinse the nose with salt water", "keep the air moist"),
        ("pain in the face", "a fever that stays", "trouble breathing"),
    ),
    (
        "a dry cough",
        ("a cold", "smoke", "dust in the air"),
        ("drink warm water with honey", "air the room", "raise the head at night"),
        ("blood when coughing", "pain in the chest", "shortness of breath"),
    ),
    (
        "back pain",
        ("long sitting", "heavy lifting", "weak muscles"),
        ("keep moving gently", "use a warm pad", "stand up every hour", "lift with the legs"),
        ("numb legs", "loss of bladder control", "pain after a fall"),
    ),
    (
        "an upset stomach",
        ("a heavy meal", "a mild infection", "stress"),
        ("eat plain food", "sip water often", "rest", "avoid fatty meals"),
        ("blood in the stool", "strong pain on one side", "signs of drying out"),
    ),
    (
        "trouble sleeping",
        ("stress", "late coffee", "irregular hours"),
        ("keep fixed bedtimes", "skip coffee after noon", "dim the lights early", "cool the room"),
        ("low mood for weeks", "pauses in breathing", "strong tiredness by day"),
    ),
    (
        "a mild sunburn",
        ("too much sun", "missed sun cream"),
        ("cool the skin", "drink enough", "stay in the shade", "use a plain lotion"),
        ("strong blistering", "a fever", "confusion"),
    ),
    (
        "sore muscles",
        ("new exercise", "heavy work"),
        ("move gently", "take a warm bath", "sleep enough", "stretch with care"),
        ("dark urine", "strong swelling", "pain in one calf"),
    ),
    (
        "heartburn",
        ("late meals", "spicy food", "tight clothes"),
        ("eat smaller meals", "stay upright after eating", "raise the head of the bed"),
        ("trouble swallowing", "weight loss", "pain that moves to the arm"),
    ),
    (
        "a mild fever",
        ("an infection", "a recent vaccine"),
        ("rest", "drink plenty", "wear light clothes", "measure the temperature twice a day"),
        ("a stiff neck", "confusion", "a fever above 39 degrees for days"),
    ),
)
PEOPLE = ("I have had", "My son has had", "My mother has had", "A friend has had")
SPANS = ("since yesterday", "for {} days", "after work", "since {}", "for about {} weeks")

TERMS = table("""
anaemia: a lack of healthy red blood cells, which often makes a person tired and pale
hypertension: blood pressure that stays too high over a long time
allergy: a strong reaction of the immune system to something that is usually harmless
antibiotic: a medicine that acts against bacteria but not against viruses
vaccine: a preparation that trains the immune system to recognise a germ
asthma: a condition in which the airways become narrow and breathing gets harder
diabetes: a condition in which the level of sugar in the blood is too high
fracture: a break in a bone
migraine: a strong headache that often comes with nausea and a wish for darkness
virus: a tiny germ that multiplies only inside living cells
bacteria: very small living things, many useful and some the cause of illness
inflammation: a response of the body with redness, warmth, swelling and pain
dehydration: a state in which the body has lost more water than it takes in
insulin: a hormone that helps sugar move from the blood into the cells
cholesterol: a fatty substance in the blood that the body needs in moderate amounts
pulse: the beat of the heart as felt in an artery, such as at the wrist
sprain: an injury to the bands that hold a joint together
biopsy: the removal of a small piece of tissue so that it can be examined
metabolism: all the processes by which the body turns food into energy
side effect: an unwanted effect of a medicine beside the wanted one
symptom: a sign of illness that the person affected can feel or notice
chronic disease: an illness that lasts for a long time or keeps coming back
immune system: the cells and organs that protect the body against germs
hormone: a messenger that travels in the blood and steers organs
artery: a vessel that carries blood away from the heart
vein: a vessel that carries blood back to the heart
""")
# organ, tasks, ways to look after it
ORGANS = (
    ("heart", ("pump blood through the body",), ("walk daily", "do not smoke", "eat less salt")),
    ("lungs", ("take in oxygen", "give off carbon dioxide"), ("avoid smoke", "exercise")),
    ("kidneys", ("filter the blood", "make urine"), ("drink enough water", "eat less salt")),
    ("liver", ("break down harmful substances", "store energy"), ("drink little alcohol",)),
    ("skin", ("keep germs out", "control warmth"), ("use sun cream", "keep it clean")),
    ("stomach", ("mix food with acid", "begin digestion"), ("eat slowly", "chew well")),
    ("bones", ("hold the body up", "make blood cells"), ("get enough calcium", "stay active")),
    ("brain", ("steer the body", "store memories"), ("sleep well", "keep learning")),
)
# nutrient, task, sources
NUTRIENTS = (
    ("vitamin C", "helps wounds heal", ("oranges", "peppers", "berries", "broccoli")),
    ("vitamin D", "keeps bones strong", ("sunlight", "oily fish", "eggs")),
    ("iron", "carries oxygen in the blood", ("beans", "red meat", "lentils", "spinach")),
    ("calcium", "builds bones and teeth", ("milk", "yoghurt", "almonds", "kale")),
    ("fibre", "keeps digestion regular", ("oats", "beans", "whole bread", "apples")),
    ("protein", "builds and repairs tissue", ("eggs", "fish", "lentils", "tofu", "nuts")),
    ("potassium", "helps muscles and nerves work", ("bananas", "potatoes", "beans")),
    ("iodine", "lets the thyroid make its hormones", ("sea fish", "milk", "iodised salt")),
)
# accident, steps in order
FIRST_AID = (
    ("a small cut", ("wash your hands", "rinse the wound", "press with a cloth", "cover it")),
    ("a nosebleed", ("sit upright", "lean forward", "pinch the soft part of the nose", "wait")),
    ("a minor burn", ("cool it under running water", "remove rings", "cover it loosely")),
    ("a bee sting", ("remove the sting", "wash the skin", "cool it", "watch for swelling")),
    ("a twisted ankle", ("stop and rest", "cool it", "wrap it", "raise the leg")),
    (
        "fainting",
        ("lay the person down", "raise the legs", "let in fresh air", "offer water later"),
    ),
    ("a splinter", ("wash the skin", "pull it out with clean tweezers", "clean the spot")),
)
GOALS = ("sleep better", "move more", "eat more vegetables", "sit less", "drink more water")
HABITS = (
    "start with ten minutes a day",
    "write down what you did each evening",
    "ask a friend to join",
    "put a note on the fridge",
    "choose a fixed time",
    "prepare things the night before",
    "raise the amount every week",
    "reward yourself with a free evening",
    "forgive a missed day and go on",
    "tell your family about the plan",
)


def _span(rng: Random) -> str:
    """How long something has lasted."""
    text = rng.choice(SPANS)
    return text.format(rng.choice(WEEKDAYS if "since" in text else COUNTS[2:]))


def _advice(rng: Random) -> Pair:
    symptom, causes, helps, warnings = rng.choice(SYMPTOMS)
    cause, other = rng.choice(causes), rng.choice(SYMPTOMS)[0]
    also = f" and {other}" if other != symptom and rng.random() < 0.4 else ""
    tips = rng.sample(helps, rng.randint(2, len(helps)))
    asked = rng.choice(("What can I do?", "What helps?", "Should I worry?", "Any advice?"))
    question = f"{rng.choice(PEOPLE)} {symptom}{also} {_span(rng)}. {asked}"
    start = f"{capital(symptom)} often comes from {cause} and mostly passes within a few days."
    signs = listed(rng.sample(warnings, 2), "or")
    end = f"See a doctor if there is {signs}, or if it does not improve."
    if rng.random() < 0.4:
        return question, "", f"{start} What may help:\n{bullets(tips)}\n{end}"
    return question, "", f"{start} It may help to {listed(tips)}. {end}"


def _definition(rng: Random) -> Pair:
    term, meaning = rng.choice(TERMS)
    asked = rng.choice(("What does {} mean?", "Define the medical term: {}.", "Explain {} simply."))
    who = rng.choice(
        ("", f" {rng.choice(NAMES)} asked me.", f" It is for year {rng.randint(5, 9)}.")
    )
    more = rng.choice(("", " A doctor can say more about a particular case."))
    return asked.format(term) + who, "", f"{capital(term)} means {meaning}.{more}"


def _difference(rng: Random) -> Pair:
    (one, first), (two, second) = rng.sample(TERMS, 2)
    asked = rng.choice(("What is the difference between {} and {}?", "Compare {} and {}."))
    response = (
        f"The two terms name different things. {capital(one)} means {first}. "
        f"{capital(two)}, on the other hand, means {second}."
    )
    return asked.format(one, two), "", response


def _organ(rng: Random) -> Pair:
    name, tasks, care = rng.choice(ORGANS)
    wish = rng.choice(
        ("What does the {} do?", "Tell {who} what the {} is for and how to care for it.")
    )
    request = wish.format(name, who=rng.choice(NAMES))
    response = f"The {name} helps the body to {listed(tasks)}."
    return request, "", response + f" To look after it, {listed(care)}." * ("care" in request)


def _nutrient(rng: Random) -> Pair:
    name, task, sources = rng.choice(NUTRIENTS)
    some = rng.sample(sources, rng.randint(2, 3))
    if rng.random() < 0.5:
        request = f"Name {COUNTS[len(some)]} sources of {name}."
        return request, "", bullets(some)
    request = f"Why do we need {name}, and are {listed(some)} a good choice?"
    return request, "", f"{capital(name)} {task}. Yes, {listed(some)} are good sources of it."


def _first_aid(rng: Random) -> Pair:
    accident, steps = rng.choice(FIRST_AID)
    place = rng.choice(("at home", "on a walk", "at work", "at school", "on a trip", "in the park"))
    person = rng.choice(("a child", "an adult", "a colleague", "a neighbour", rng.choice(NAMES)))
    request = f"What are the first steps for {accident} of {person} {place}?"
    end = "Call for medical help if it looks serious or does not get better."
    return request, "", f"{numbered([capital(step) for step in steps])}\n{end}"


def _plan(rng: Random) -> Pair:
    goal, number = rng.choice(GOALS), rng.randint(2, 6)
    tips = [capital(habit) for habit in rng.sample(HABITS, number)]
    person = rng.choice(NAMES)
    request = f"Give {person} {COUNTS[number]} tips to {goal}, starting in {rng.choice(MONTHS)}."
    return request, "", f"To {goal}, {person} can try this:\n{numbered(tips)}"


def _triage(rng: Random) -> Pair:
    symptom, _, helps, warnings = rng.choice(SYMPTOMS)
    urgent = rng.random() < 0.5
    sign = f"There is also {rng.choice(warnings)}." if urgent else "There are no other complaints."
    note = f"{rng.choice(NAMES)}, aged {rng.randint(18, 80)}, with {symptom} {_span(rng)}. {sign}"
    request = "Is this note urgent or routine? Answer with the class and a reason."
    if urgent:
        return request, note, f"Urgent: {sign[14:-1]} should be checked by a doctor soon."
    return request, note, f"Routine: {symptom} alone can be watched; {rng.choice(helps)}."


def _plain_words(rng: Random) -> Pair:
    name, (term, meaning) = rng.choice(NAMES), rng.choice(TERMS)
    symptom, causes, helps, _ = rng.choice(SYMPTOMS)
    day, tip, weeks = rng.choice(WEEKDAYS), rng.choice(helps), rng.choice(COUNTS[2:9])
    note = (
        f"Patient {name} seen on {day}. Reports {symptom}. Cause likely {rng.choice(causes)}. "
        f"Questions about {term} answered. Plan: {tip}. Review in {weeks} weeks."
    )
    response = (
        f"On {day} {name} came because of {symptom}. The advice is to {tip}. The doctor also "
        f"explained {term}, that is, {meaning}. The next visit is in {weeks} weeks."
    )
    return "Rewrite this note in plain words for the patient.", note, response


KINDS: tuple[Kind, ...] = (
    _advice,
    _advice,
    _definition,
    _difference,
    _organ,
    _nutrient,
    _first_aid,
    _plan,
    _triage,
    _plain_words,
)


def pair(rng: Random) -> Pair:
    """Draw one question and its answer."""
    return rng.choice(KINDS)(rng)
