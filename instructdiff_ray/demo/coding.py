"""Programming tasks: Python functions, bug fixes and explanations, and those of `commands`.

Python answers stand in a ```python block. Where an answer shows an example call, its result was
computed here by other means than the code in the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from instructdiff_ray.demo import commands
from instructdiff_ray.demo.words import NAMES, WORDS, Kind, Pair, listed, split

# what is kept: words, expression, the same as a function; {k} is a number
FILTERS: tuple[tuple[str, str, Callable[[int, int], bool]], ...] = (
    ("even numbers", "n % 2 == 0", lambda n, k: n in range(-100, 100, 2)),
    ("odd numbers", "n % 2 == 1", lambda n, k: n in range(-99, 100, 2)),
    ("numbers above {k}", "n > {k}", lambda n, k: not n <= k),
    ("numbers below {k}", "n < {k}", lambda n, k: not n >= k),
    ("multiples of {k}", "n % {k} == 0", lambda n, k: n == int(n / k) * k),
    ("numbers other than {k}", "n != {k}", lambda n, k: n - k != 0),
    ("numbers of at least {k}", "n >= {k}", lambda n, k: not n < k),
)
# what is done to each: words, expression, the same as a function
CHANGES: tuple[tuple[str, str, Callable[[int], int]], ...] = (
    ("the {}", "n", lambda n: n),
    ("the squares of the {}", "n * n", lambda n: n**2),
    ("the doubles of the {}", "2 * n", lambda n: n + n),
    ("the negatives of the {}", "-n", lambda n: 0 - n),
    ("the successors of the {}", "n + 1", lambda n: n - -1),
)
# what comes out: function name, words, expression, the same as a function
RESULTS: tuple[tuple[str, str, str, Callable[[list[int]], Any]], ...] = (
    ("pick", "{} as a list", "[{}]", list),
    ("total", "the sum of {}", "sum({})", sum),
    ("largest", "the largest of {}, or 0 if there are none", "max(({}), default=0)", max),
    ("ordered", "{} in ascending order", "sorted({})", sorted),
    ("distinct", "how many different values occur among {}", "len({{{}}})", lambda v: len(set(v))),
)
# task, function name, expression, the same as a function
TEXT_TASKS: tuple[tuple[str, str, str, Callable[[str], Any]], ...] = (
    ("reverses a string", "reverse", "text[::-1]", lambda t: "".join(reversed(t))),
    (
        "counts the vowels in a string",
        "vowels",
        'sum(letter in "aeiou" for letter in text.lower())',
        lambda t: sum(t.count(vowel) for vowel in "aeiou"),
    ),
    (
        "tells whether a string is a palindrome",
        "is_palindrome",
        "text == text[::-1]",
        lambda t: list(t) == list(reversed(t)),
    ),
    (
        "returns the longest word of a string",
        "longest",
        "max(text.split(), key=len)",
        lambda t: next(w for w in t.split() if len(w) == max(map(len, t.split()))),
    ),
    (
        "counts the words in a string",
        "count_words",
        "len(text.split())",
        lambda t: t.count(" ") + 1,
    ),
    (
        "removes all spaces from a string",
        "squeeze",
        'text.replace(" ", "")',
        lambda t: "".join(t.split()),
    ),
    (
        "returns the initials of the words in a string",
        "initials",
        '"".join(word[0] for word in text.split())',
        lambda t: "".join(b for a, b in zip(" " + t, t, strict=False) if a == " "),
    ),
    (
        "sorts the words of a string",
        "sort_words",
        '" ".join(sorted(text.split()))',
        lambda t: " ".join(sorted(t.split())),
    ),
    (
        "puts the words of a string in reverse order",
        "flip_words",
        '" ".join(reversed(text.split()))',
        lambda t: " ".join(t.split()[::-1]),
    ),
)
# request, code, remark
CLASSICS = (
    (
        "computes the factorial of n",
        """def factorial(n):
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result""",
        "The loop multiplies the numbers from 2 to n, so the factorial of 0 is 1.",
    ),
    (
        "returns the n-th Fibonacci number",
        """def fibonacci(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a""",
        "Two variables hold neighbouring numbers, so no list is needed.",
    ),
    (
        "tells whether n is a prime number",
        """def is_prime(n):
    if n < 2:
        return False
    d = 2
    while d * d <= n:
        if n % d == 0:
            return False
        d += 1
    return True""",
        "It is enough to try divisors up to the square root of n.",
    ),
    (
        "finds the position of a value in a sorted list by binary search, or -1",
        """def search(values, wanted):
    low, high = 0, len(values) - 1
    while low <= high:
        middle = (low + high) // 2
        if values[middle] == wanted:
            return middle
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1""",
        "Each round halves the range, so the search takes logarithmic time.",
    ),
    (
        "counts how often each item occurs in a list",
        """def counts(items):
    result = {}
    for item in items:
        result[item] = result.get(item, 0) + 1
    return result""",
        "The dictionary maps every item to its count.",
    ),
    (
        "splits a list into chunks of a given size",
        """def chunks(items, size):
    return [items[i : i + size] for i in range(0, len(items), size)]""",
        "The last chunk is shorter when the size does not divide the length.",
    ),
    (
        "merges two sorted lists into one",
        """def merge(a, b):
    result, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] <= b[j]:
            result.append(a[i])
            i += 1
        else:
            result.append(b[j])
            j += 1
    return result + a[i:] + b[j:]""",
        "Each step takes the smaller head, and what is left of either list goes to the end.",
    ),
    (
        "removes duplicates from a list and keeps the order",
        """def unique(items):
    return list(dict.fromkeys(items))""",
        "A dictionary keeps its keys in the order of insertion.",
    ),
)
FIELDS = {
    "name": "str",
    "price": "float",
    "count": "int",
    "title": "str",
    "length": "float",
    "age": "int",
    "owner": "str",
    "weight": "float",
}
THINGS = split("Book Car Parcel Pet Tool Ticket Room Plant Song Ship")
ASKS = ("Write a Python function that", "I need a Python function that", "Implement code that")


def _function(name: str, parameter: str, expression: str) -> str:
    """A Python function of one parameter that returns the expression."""
    return f"def {name}({parameter}):\n    return {expression}"


def _numbers_task(rng: Random) -> tuple[str, str, str, str]:
    """A request about a list of numbers, the function's name, its expression and an example."""
    kept, test, keep = rng.choice(FILTERS)
    change, value, turn = rng.choice(CHANGES)
    name, outcome, shape, gather = rng.choice(RESULTS)
    k = rng.randint(2, 20)
    values = [rng.randint(-10, 30) for _ in range(rng.randint(4, 7))]
    request = "takes a list of numbers and returns " + outcome.format(change.format(kept))
    expression = shape.format(f"{value} for n in numbers if {test}")
    found = [turn(n) for n in values if keep(n, k)]
    shown = gather(found) if found or gather is not max else 0
    example = f"`{name}({values})` returns `{shown}`"
    return request.format(k=k), name, expression.replace("{k}", str(k)), example


def _number_function(rng: Random) -> Pair:
    request, name, expression, example = _numbers_task(rng)
    response = commands.fenced("python", _function(name, "numbers", expression))
    if rng.random() < 0.5:
        response += f"\nFor example, {example}."
    return f"{rng.choice(ASKS)} {request}.", "", response


def _text_function(rng: Random) -> Pair:
    task, name, expression, compute = rng.choice(TEXT_TASKS)
    text = " ".join(rng.sample(WORDS, rng.randint(1, 4)))
    code = commands.fenced("python", _function(name, "text", expression))
    response = f"{code}\nFor example, `{name}({text!r})` returns `{compute(text)!r}`."
    return f"{rng.choice(ASKS)} {task}. Show what it does with {text!r}.", "", response


def _classic(rng: Random) -> Pair:
    task, code, remark = rng.choice(CLASSICS)
    request, response = f"{rng.choice(ASKS)} {task}.", commands.fenced("python", code)
    if rng.random() < 0.5:
        request += rng.choice((" Explain it briefly.", " Add one sentence about how it works."))
        response += f"\n{remark}"
    if rng.random() < 0.7:
        request += f" It is for {rng.choice(NAMES)}, who is learning to program."
    return request, "", response


def _repair(rng: Random) -> Pair:
    request, name, expression, example = _numbers_task(rng)
    right = _function(name, "numbers", expression)
    wrong, fault = rng.choice(
        (
            (right.replace("):", ")", 1), "The colon after the parameter list is missing."),
            (right.replace("return ", ""), "The result is computed but not returned."),
            (_function(name, "values", expression), "The parameter is not the name that is used."),
        )
    )
    asked = rng.choice(("Fix the bug in this function, which", "Find the mistake. The function"))
    corrected = commands.fenced("python", right)
    return f"{asked} {request}.", wrong, f"{fault} Corrected:\n{corrected}\nNow {example}."


def _explain(rng: Random) -> Pair:
    request, name, expression, example = _numbers_task(rng)
    asked = rng.choice(("Explain what this code does.", "What does this function do?"))
    response = f"The function `{name}` {request}. For example, {example}."
    return asked, _function(name, "numbers", expression), response


def _predict(rng: Random) -> Pair:
    start, stop, step = rng.randint(0, 9), rng.randint(12, 40), rng.randint(2, 6)
    each = rng.randint(2, 9)
    loop = f"for i in range({start}, {stop}, {step}):\n    total += {each}"
    passes = [str(i) for i in range(start, stop, step)]
    response = (
        f"The loop runs for {listed(passes)}, that is {len(passes)} times. "
        f"Each round adds {each}, so it prints {len(passes) * each}."
    )
    return "What does this program print?", f"total = 0\n{loop}\nprint(total)", response


def _dataclass(rng: Random) -> Pair:
    thing, fields = rng.choice(THINGS), rng.sample([*FIELDS], rng.randint(2, 4))
    lines = "\n".join(f"    {field}: {FIELDS[field]}" for field in fields)
    code = f"from dataclasses import dataclass\n\n\n@dataclass\nclass {thing}:\n{lines}"
    request = f"Write a Python dataclass {thing} with the fields {listed(fields)}."
    if rng.random() < 0.5:
        code += f"\n\n    def label(self) -> str:\n        return str(self.{fields[0]})"
        request += f" A method label returns the {fields[0]} as a string."
    return request, "", commands.fenced("python", code)


KINDS: tuple[Kind, ...] = (
    _number_function,
    _text_function,
    _classic,
    _repair,
    _explain,
    _predict,
    _dataclass,
    *commands.KINDS,
)


def pair(rng: Random) -> Pair:
    """Draw one task and its solution."""
    return rng.choice(KINDS)(rng)
