"""Word problems and exercises with worked answers.

Every calculation in an answer is written `expression = expression` in plain digits and `+ - * /`,
so that a reader, and the tests, can work it out again.
"""

from __future__ import annotations

import math
from random import Random

from instructdiff_ray.demo.words import NAMES, Kind, Pair, listed, numbered, split

# thing in the plural, lowest and highest price
GOODS = (
    ("notebooks", 2, 6),
    ("pencils", 1, 3),
    ("apples", 1, 2),
    ("lamps", 12, 40),
    ("chairs", 20, 75),
    ("tickets", 8, 30),
    ("mugs", 4, 11),
    ("plants", 5, 18),
    ("shirts", 9, 35),
    ("tins of paint", 11, 28),
    ("puzzles", 7, 22),
    ("sandwiches", 3, 9),
    ("bags of rice", 4, 16),
    ("batteries", 2, 7),
)
VEHICLES = split("train bus cyclist ferry lorry tram runner canoe drone")
PLACES = split("garden field courtyard orchard paddock playground terrace meadow")
FACTORS = (
    ("hours", "minutes", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("minutes", "seconds", 60),
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("kilograms", "grams", 1000),
    ("litres", "millilitres", 1000),
    ("dozens", "pieces", 12),
)
COLOURS = split("red blue green yellow white black")
ENDINGS = (
    "The answer is {}.",
    "So the answer is {}.",
    "Answer: {}.",
    "Therefore the result is {}.",
)


def _worked(rng: Random, steps: list[tuple[str, str]], answer: object) -> str:
    """Tell the steps, each a reason and a calculation, in one of several ways."""
    ending = rng.choice(ENDINGS).format(answer)
    style = rng.randrange(4)
    if style == 0:
        return " ".join(f"{calculation}." for _, calculation in steps) + f" {ending}"
    if style == 1:
        return numbered([f"{why}: {calculation}" for why, calculation in steps]) + f"\n{ending}"
    if style == 2:
        return "\n".join(calculation for _, calculation in steps) + f"\n{ending}"
    told = [f"{why}, which gives {calculation}." for why, calculation in steps]
    return f"Let us work this out step by step. {' '.join(told)} {ending}"


def _shopping(rng: Random) -> Pair:
    (first, low, high), (second, least, most) = rng.sample(GOODS, 2)
    a, b, name = rng.randint(2, 12), rng.randint(2, 9), rng.choice(NAMES)
    p, q = rng.randint(low, high), rng.randint(least, most)
    total = a * p + b * q
    steps = [
        (f"Work out the price of the {first}", f"{a} * {p} = {a * p}"),
        (f"Work out the price of the {second}", f"{b} * {q} = {b * q}"),
        ("Add both amounts", f"{a * p} + {b * q} = {total}"),
    ]
    story = f"{name} buys {a} {first} at {p} dollars each and {b} {second} at {q} dollars each."
    if rng.random() < 0.5:
        return f"{story} How much does {name} pay?", "", _worked(rng, steps, f"{total} dollars")
    note = math.ceil((total + 1) / 50) * 50
    steps.append(("Take the total from the money paid", f"{note} - {total} = {note - total}"))
    question = f"{story} {name} pays with {note} dollars. How much change is due?"
    return question, "", _worked(rng, steps, f"{note - total} dollars")


def _travel(rng: Random) -> Pair:
    vehicle, v, w = rng.choice(VEHICLES), rng.randint(8, 95), rng.randint(8, 95)
    s, t = rng.randint(2, 7), rng.randint(2, 7)
    steps = [
        ("Find the length of the first part", f"{v} * {s} = {v * s}"),
        ("Find the length of the second part", f"{w} * {t} = {w * t}"),
        ("Add the two parts", f"{v * s} + {w * t} = {v * s + w * t}"),
    ]
    question = (
        f"A {vehicle} moves at {v} km per hour for {s} hours and then at {w} km per hour "
        f"for {t} hours. How far does it go in all?"
    )
    return question, "", _worked(rng, steps, f"{v * s + w * t} km")


def _discount(rng: Random) -> Pair:
    goods, rate = rng.choice(GOODS)[0], rng.choice((5, 10, 15, 20, 25, 30, 40, 50))
    price = 20 * rng.randint(2, 60)
    off = price * rate // 100
    if rng.random() < 0.5:
        change, sign, result = "reduced", "-", price - off
    else:
        change, sign, result = "raised", "+", price + off
    steps = [
        (f"Find {rate} percent of the price", f"{price} * {rate} / 100 = {off}"),
        ("Apply the change", f"{price} {sign} {off} = {result}"),
    ]
    question = (
        f"A shop sells a set of {goods} for {price} dollars. The price is {change} by {rate} "
        "percent. What is the new price?"
    )
    return question, "", _worked(rng, steps, f"{result} dollars")


def _sharing(rng: Random) -> Pair:
    goods, children, each = rng.choice(GOODS)[0], rng.randint(3, 14), rng.randint(3, 25)
    left = rng.randrange(children)
    total = children * each + left
    steps = [
        ("Find the largest multiple that fits", f"{children} * {each} = {children * each}"),
        ("See what is left", f"{total} - {children * each} = {left}"),
    ]
    question = (
        f"{total} {goods} are shared equally among {children} children. "
        "How many does each child get, and how many are left over?"
    )
    return question, "", _worked(rng, steps, f"{each} each with {left} left over")


def _rectangle(rng: Random) -> Pair:
    place, a, b = rng.choice(PLACES), rng.randint(3, 40), rng.randint(3, 40)
    fact = f"A rectangular {place} is {a} metres long and {b} metres wide."
    if rng.random() < 0.4:
        steps = [("Multiply length by width", f"{a} * {b} = {a * b}")]
        return f"{fact} What is its area?", "", _worked(rng, steps, f"{a * b} square metres")
    cost, around = rng.randint(3, 25), 2 * (a + b)
    steps = [
        ("Find the distance around it", f"2 * ({a} + {b}) = {around}"),
        ("Multiply by the price per metre", f"{around} * {cost} = {around * cost}"),
    ]
    question = f"{fact} A fence costs {cost} dollars per metre. What does a fence around it cost?"
    return question, "", _worked(rng, steps, f"{around * cost} dollars")


def _equation(rng: Random) -> Pair:
    a, x, b = rng.randint(2, 15), rng.randint(-12, 20), rng.randint(1, 40)
    c = a * x + b
    response = (
        f"Start from {a} * x + {b} = {c}. Subtract {b} on both sides: {a} * x = {c} - {b} = "
        f"{c - b}. Divide by {a}: x = {c - b} / {a} = {x}. "
    )
    if rng.random() < 0.5:
        response += f"Check: {a} * ({x}) + {b} = {a * x} + {b} = {c}, as it should be. "
    asked = rng.choice(("Solve for x:", "Find x such that", "What is x if"))
    return f"{asked} {a} * x + {b} = {c}", "", response + f"The answer is {x}."


def _average(rng: Random) -> Pair:
    count, mean = rng.randint(3, 7), rng.randint(10, 90)
    values = [mean + rng.randint(-9, 9) for _ in range(count - 1)]
    values.append(mean * count - sum(values))
    terms = " + ".join(map(str, values))
    steps = [
        ("Add the numbers", f"{terms} = {sum(values)}"),
        (f"Divide by {count}", f"{sum(values)} / {count} = {mean}"),
    ]
    return "Find the mean of these numbers.", listed([*map(str, values)]), _worked(rng, steps, mean)


def _conversion(rng: Random) -> Pair:
    large, small, factor = rng.choice(FACTORS)
    a, extra = rng.randint(2, 60), rng.randint(1, factor - 1)
    steps = [
        (f"Turn {large} into {small}", f"{a} * {factor} = {a * factor}"),
        (f"Add the {small}", f"{a * factor} + {extra} = {a * factor + extra}"),
    ]
    question = f"How many {small} are {a} {large} and {extra} {small}?"
    return question, "", _worked(rng, steps, f"{a * factor + extra} {small}")


def _savings(rng: Random) -> Pair:
    name, start, weekly = rng.choice(NAMES), rng.randint(10, 200), rng.randint(5, 40)
    weeks = rng.randint(4, 30)
    goal = start + weekly * weeks
    steps = [
        ("Find what is missing", f"{goal} - {start} = {goal - start}"),
        ("Divide by the amount saved per week", f"{goal - start} / {weekly} = {weeks}"),
    ]
    question = (
        f"{name} has {start} dollars and saves {weekly} dollars every week. "
        f"After how many weeks does {name} have {goal} dollars?"
    )
    return question, "", _worked(rng, steps, f"{weeks} weeks")


def _expression(rng: Random) -> Pair:
    a, b, c, d = (rng.randint(2, 30) for _ in range(4))
    value = (a + b) * c - d
    steps = [
        ("Start inside the brackets", f"{a} + {b} = {a + b}"),
        ("Multiply", f"{a + b} * {c} = {(a + b) * c}"),
        ("Subtract", f"{(a + b) * c} - {d} = {value}"),
    ]
    asked = rng.choice(("Compute the value of", "Evaluate", "What is"))
    return f"{asked} ({a} + {b}) * {c} - {d}", "", _worked(rng, steps, value)


def _progression(rng: Random) -> Pair:
    first, step, n = rng.randint(1, 30), rng.randint(2, 12), rng.randint(8, 40)
    shown = listed([str(first + step * k) for k in range(4)])
    last = first + step * (n - 1)
    steps = [
        ("Find the constant step", f"{first + step} - {first} = {step}"),
        (f"Count the steps up to term {n}", f"{n} - 1 = {n - 1}"),
        ("Add them to the first term", f"{first} + {step} * {n - 1} = {last}"),
    ]
    return f"A sequence begins {shown}. What is term number {n}?", "", _worked(rng, steps, last)


def _ratio(rng: Random) -> Pair:
    (one, other), (a, b) = rng.sample(NAMES, 2), rng.sample(range(2, 10), 2)
    unit = rng.randint(3, 30)
    total = (a + b) * unit
    steps = [
        ("Count the parts", f"{a} + {b} = {a + b}"),
        ("Find the size of one part", f"{total} / {a + b} = {unit}"),
        (f"Give {one} the parts due", f"{a} * {unit} = {a * unit}"),
        (f"Give {other} the parts due", f"{b} * {unit} = {b * unit}"),
    ]
    question = f"{one} and {other} split {total} dollars in the ratio {a} to {b}. Who gets what?"
    answer = f"{a * unit} dollars for {one} and {b * unit} dollars for {other}"
    return question, "", _worked(rng, steps, answer)


def _divisor(rng: Random) -> Pair:
    common = rng.randint(2, 20)
    x, y = common * rng.randint(3, 25), common * rng.randint(3, 25)
    a, b, steps = max(x, y), min(x, y), []
    while b:
        steps.append((f"Divide {a} by {b}", f"{a} = {a // b} * {b} + {a % b}"))
        a, b = b, a % b
    return f"Find the greatest common divisor of {x} and {y}.", "", _worked(rng, steps, a)


def _marbles(rng: Random) -> Pair:
    one, other = rng.sample(COLOURS, 2)
    a, b = rng.randint(2, 20), rng.randint(2, 20)
    shared = math.gcd(a, a + b)
    steps = [("Count all marbles", f"{a} + {b} = {a + b}")]
    if shared > 1:
        reduced = f"{a} / {a + b} = {a // shared} / {(a + b) // shared}"
        steps.append((f"Divide both numbers by {shared}", reduced))
    question = (
        f"A bag holds {a} {one} marbles and {b} {other} marbles. "
        f"What is the probability that a marble drawn at random is {one}?"
    )
    return question, "", _worked(rng, steps, f"{a // shared} / {(a + b) // shared}")


def _quick(rng: Random) -> Pair:
    sign, (a, b) = rng.choice("+-*"), rng.sample(range(2, 100), 2)
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    asked = rng.choice(("What is", "Calculate", "Give only the calculation and its result:"))
    return f"{asked} {a} {sign} {b}", "", f"{a} {sign} {b} = {value}"


KINDS: tuple[Kind, ...] = (
    _shopping,
    _travel,
    _discount,
    _sharing,
    _rectangle,
    _equation,
    _average,
    _conversion,
    _savings,
    _expression,
    _progression,
    _ratio,
    _divisor,
    _marbles,
    _quick,
)


def pair(rng: Random) -> Pair:
    """Draw one exercise and its worked answer."""
    return rng.choice(KINDS)(rng)
