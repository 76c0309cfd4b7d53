"""SQL, shell and git tasks with the statement or the commands that do them."""

from __future__ import annotations

from random import Random

from instructdiff_ray.demo.words import TOWNS, WORDS, Kind, Pair, numbered, split

# table, text columns, number columns
TABLES = (
    ("customers", ("name", "city"), ("age", "orders", "points")),
    ("orders", ("product", "status"), ("quantity", "price", "weight")),
    ("employees", ("name", "department"), ("salary", "age", "absences")),
    ("books", ("title", "author"), ("pages", "price", "copies")),
    ("flights", ("origin", "destination"), ("distance", "seats", "delay")),
    ("students", ("name", "course"), ("grade", "semester", "credits")),
    ("sensors", ("place", "kind"), ("reading", "battery", "height")),
)
COMPARISONS = ((">", "above"), ("<", "below"), (">=", "of at least"), ("<=", "of at most"))
AGGREGATES = (("AVG", "average"), ("MIN", "lowest"), ("MAX", "highest"))

SUFFIXES = split("log txt csv json py conf tmp md")
FOLDERS = split("reports photos backup src data logs notes music")
# request and command, with {s} a suffix, {f} a folder, {w} a word and {k} a number
SHELL = (
    ("find all .{s} files in {f} older than {k} days", 'find {f} -name "*.{s}" -mtime +{k}'),
    ("count the lines that contain {w} in all .{s} files in {f}", "cat {f}/*.{s} | grep -c {w}"),
    ("show the last {k} lines of {f}/{w}.{s}", "tail -n {k} {f}/{w}.{s}"),
    ("list the {k} largest entries in {f}", "du -s {f}/* | sort -rn | head -n {k}"),
    ("pack the folder {f} into {w}.tar.gz", "tar -czf {w}.tar.gz {f}"),
    ("copy every .{s} file from {f} to the folder {w}", "mkdir -p {w} && cp {f}/*.{s} {w}/"),
    ("replace {w} by done in {f}/list.{s}", "sed -i 's/{w}/done/g' {f}/list.{s}"),
    ("print column {k} of {f}/{w}.csv", "cut -d , -f {k} {f}/{w}.csv"),
    ("show which files under {f} mention {w}", "grep -rl {w} {f}"),
    ("delete empty .{s} files below {f}", 'find {f} -name "*.{s}" -empty -delete'),
    ("sort {f}/{w}.{s} and drop repeated lines", "sort -u {f}/{w}.{s}"),
    ("create a git branch called {w} and switch to it", "git switch -c {w}"),
    ("show the last {k} git commits that changed {f}", "git log -n {k} --oneline -- {f}"),
    ("make the script {f}/{w}.sh executable and run it", "chmod +x {f}/{w}.sh && ./{f}/{w}.sh"),
)


def fenced(language: str, code: str) -> str:
    """The code as a fenced block."""
    return f"```{language}\n{code}\n```"


def _select(rng: Random) -> Pair:
    table, texts, numbers = rng.choice(TABLES)
    label, number, k = texts[0], rng.choice(numbers), rng.randint(2, 90)
    sign, words = rng.choice(COMPARISONS)
    query = f"SELECT {label}, {number}\nFROM {table}\nWHERE {number} {sign} {k}"
    wanted = f"the {label} and {number} of all {table} with {number} {words} {k}"
    if rng.random() < 0.5:
        limit = rng.randint(3, 20)
        query += f"\nORDER BY {number} DESC\nLIMIT {limit}"
        wanted += f", largest first, at most {limit} rows"
    columns = f"{table}({', '.join(texts + numbers)})"
    return f"Write an SQL query for {wanted}.", columns, fenced("sql", f"{query};")


def _aggregate(rng: Random) -> Pair:
    table, texts, numbers = rng.choice(TABLES)
    group, number, (function, word) = texts[1], rng.choice(numbers), rng.choice(AGGREGATES)
    query = f"SELECT {group}, {function}({number})\nFROM {table}\nGROUP BY {group}"
    wanted = f"the {word} {number} per {group} in the table {table}"
    note = f"GROUP BY makes one row per {group}."
    if rng.random() < 0.5:
        k = rng.randint(2, 50)
        query += f"\nHAVING COUNT(*) >= {k}"
        wanted += f", only where there are at least {k} rows"
        note += " HAVING filters the groups after they are formed."
    return f"Write an SQL query for {wanted}.", "", f"{fenced('sql', query + ';')}\n{note}"


def _change_rows(rng: Random) -> Pair:
    table, texts, numbers = rng.choice(TABLES)
    label, number, value = rng.choice(texts), rng.choice(numbers), rng.choice(TOWNS + WORDS)
    k = rng.randint(1, 300)
    if rng.random() < 0.5:
        wanted = f"set the {number} to {k} for all {table} whose {label} is {value}"
        query = f"UPDATE {table}\nSET {number} = {k}\nWHERE {label} = '{value}'"
    else:
        wanted = (
            f"delete all {table} whose {label} is {value} and whose {number} value is under {k}"
        )
        query = f"DELETE FROM {table}\nWHERE {label} = '{value}' AND {number} < {k}"
    return f"Using SQL, {wanted}.", "", fenced("sql", f"{query};")


def _slots(rng: Random) -> dict[str, object]:
    """What fills the gaps of a shell task."""
    return {
        "s": rng.choice(SUFFIXES),
        "f": rng.choice(FOLDERS),
        "w": rng.choice(WORDS),
        "k": rng.randint(2, 30),
    }


def _shell(rng: Random) -> Pair:
    (request, command), gaps = rng.choice(SHELL), _slots(rng)
    asked, end = rng.choice((("Give a shell command to", "."), ("On Linux, how do I", "?")))
    told = rng.choice(("", "Use this command:\n", "You can run:\n"))
    return f"{asked} {request.format(**gaps)}{end}", "", told + command.format(**gaps)


def _script(rng: Random) -> Pair:
    tasks, gaps = rng.sample(SHELL[:11], rng.randint(2, 3)), _slots(rng)
    wanted = [request.format(**gaps) for request, _ in tasks]
    commands = [command.format(**gaps) for _, command in tasks]
    lines = "\n".join(
        f"# {want}\n{command}" for want, command in zip(wanted, commands, strict=True)
    )
    response = fenced("sh", f"#!/bin/sh\nset -e\n{lines}")
    return "Write a shell script that does the following.", numbered(wanted), response


KINDS: tuple[Kind, ...] = (_select, _aggregate, _change_rows, _shell, _script)
