#!/usr/bin/env python3
"""Share of one-letter bindings and parameters in product code, as house.md measured it (let, parameters, closures, for, if let and
match arms left out), and the functions in which a one-letter name lives longest.

    short_names.py ROOT [--top 30] [--files] [--lines 5]

Product code: *.rs outside tests/, samples/, ebpf/programs tests, benches; without cfg(test) modules and tests.rs/testing.rs/fuzz.rs.
A binding's life: lines from where it is bound to its last use in the same block (parameters: the function).
"""
import argparse, collections, os, subprocess, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from rustlex import lex

SKIP = ("tests/", "samples/", "xtask/", "ebpf/programs/")


def product(root):
    out = subprocess.run(["git", "-C", root, "ls-files", "*.rs"], capture_output=True, text=True).stdout.split()
    return [f for f in out if not f.startswith(SKIP) and "/tests/" not in f
            and os.path.basename(f) not in ("tests.rs", "testing.rs", "fuzz.rs", "build.rs")]


def tokens(text):
    t, line, last = [], 1, 0
    for k, a, b in lex(text):
        line += text.count("\n", last, a)
        last = a
        if k != "comment":
            t.append((k, text[a:b], line))
    return cut_tests(t)


def cut_tests(t):
    out, i = [], 0
    while i < len(t):
        if [x[1] for x in t[i:i + 6]] == ["#", "[", "cfg", "(", "test", ")"]:
            j = i + 7
            while j < len(t) and t[j][1] not in ("{", ";"):
                j += 1
            if j < len(t) and t[j][1] == "{":
                d = 0
                while j < len(t):
                    d += (t[j][1] == "{") - (t[j][1] == "}")
                    if d == 0:
                        break
                    j += 1
            i = j + 1
            continue
        out.append(t[i])
        i += 1
    return out


def names_in(t, a, b):
    """Identifiers that a pattern t[a:b] binds: lower case, no path, no field name, no function."""
    out = []
    for i in range(a, b):
        k, s, _ = t[i]
        if k != "id" or s in ("mut", "ref", "box", "_", "self", "if", "let") or not (s[0].islower() or s[0] == "_"):
            continue
        n = t[i + 1][1] if i + 1 < len(t) else ""
        if n in ("::", "(", "!", "{") or (n == ":" and i + 1 < b) or t[i - 1][1] in ("::", ".", "&&"):
            continue
        out.append((s, i))
    return out


def block_end(t, i):
    """End of the innermost block that token i is in."""
    d = 0
    for j in range(i, len(t)):
        if t[j][1] == "{":
            d += 1
        elif t[j][1] == "}":
            d -= 1
            if d < 0:
                return j
    return len(t) - 1


def until(t, i, stops):
    d = 0
    while i < len(t):
        s = t[i][1]
        if d == 0 and s in stops:
            return i
        if s in ("(", "[", "{"):
            d += 1
        elif s in (")", "]", "}"):
            if d == 0:
                return i
            d -= 1
        i += 1
    return i


def bindings(t):
    """(name, where, end of life, kind)"""
    out, i = [], 0
    while i < len(t):
        k, s, ln = t[i]
        if k == "id" and s == "fn" and i + 1 < len(t) and t[i + 1][0] == "id":
            o = i + 2
            if t[o][1] == "<":
                d = 0
                while o < len(t):
                    if t[o][1] == "<":
                        d += 1
                    elif t[o][1] == ">":
                        d -= 1
                    o += 1
                    if d == 0:
                        break
            if o < len(t) and t[o][1] == "(":
                c = until(t, o + 1, (")",))
                b = until(t, c + 1, ("{", ";"))
                end = block_end(t, b + 1) if b < len(t) and t[b][1] == "{" else c
                p = o + 1
                while p < c:
                    colon = until(t, p, (":", ","))
                    if colon < c and t[colon][1] == ":":
                        out += [(n, w, end, "param") for n, w in names_in(t, p, colon)]
                        # generics may hold commas
                        d, q = 0, colon + 1
                        while q < c:
                            x = t[q][1]
                            if x in ("<", "(", "["):
                                d += 1
                            elif x in (">", ")", "]"):
                                d -= 1
                            elif x == "," and d <= 0:
                                break
                            q += 1
                        p = q + 1
                    else:
                        p = colon + 1
        elif k == "id" and s == "let":
            e = until(t, i + 1, ("=", ":", ";"))
            kind = "iflet" if t[i - 1][1] in ("if", "while", "&&") else "let"
            end = block_end(t, e)
            if kind == "iflet":
                b = until(t, e, ("{",))
                end = block_end(t, b + 1)
            out += [(n, w, end, kind) for n, w in names_in(t, i + 1, e)]
        elif k == "id" and s == "for" and t[i + 1][1] != "<":
            e = until(t, i + 1, ("in", "{", ";"))
            if e < len(t) and t[e][1] == "in":
                b = until(t, e, ("{",))
                out += [(n, w, block_end(t, b + 1), "for") for n, w in names_in(t, i + 1, e)]
        elif s == "|" and t[i - 1][1] in ("(", ",", "=", "move", "{", ";", "=>", "return", "else", "&&", "||"):
            e = until(t, i + 1, ("|",))
            if e < len(t) and t[e][1] == "|":
                end = block_end(t, e + 2) if e + 1 < len(t) and t[e + 1][1] == "{" else until(t, e + 1, (",", ";"))
                p = i + 1
                colon = until(t, p, (":", "|"))
                out += [(n, w, end, "closure") for n, w in names_in(t, i + 1, min(e, colon) if t[colon][1] == ":" else e)]
                i = e
        i += 1
    return out


def functions(t):
    out = []
    for i, x in enumerate(t):
        if x[1] == "fn" and i + 1 < len(t) and t[i + 1][0] == "id":
            b = until(t, i + 2, ("{", ";"))
            while b < len(t) and t[b][1] not in ("{", ";"):
                b = until(t, b + 1, ("{", ";"))
            if b < len(t) and t[b][1] == "{":
                out.append((t[i + 1][1], i, block_end(t, b + 1)))
    return out


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("root")
    ap.add_argument("--top", type=int, default=30)
    ap.add_argument("--lines", type=int, default=5)
    ap.add_argument("--files", action="store_true")
    ap.add_argument("--under", default="")
    o = ap.parse_args()
    total = collections.Counter()
    per_file, funcs = {}, []
    letters = collections.Counter()
    for f in product(o.root):
        if not f.startswith(o.under):
            continue
        t = tokens(open(f"{o.root}/{f}", encoding="utf-8").read())
        fns = functions(t)
        c = collections.Counter()
        for n, w, end, kind in bindings(t):
            c["all"] += 1
            c["all " + kind] += 1
            if len(n) != 1:
                continue
            c["one"] += 1
            c["one " + kind] += 1
            uses = [j for j in range(w + 1, min(end + 1, len(t))) if t[j][1] == n and t[j - 1][1] not in (".", "::")]
            life = t[uses[-1]][2] - t[w][2] + 1 if uses else 1
            if life > o.lines:
                c["long"] += 1
                letters[n] += 1
                inside = [x for x in fns if x[1] < w <= x[2]]
                if inside:
                    name, a, b = max(inside, key=lambda x: x[1])
                    funcs.append((f, name, t[a][2], t[b][2] - t[a][2] + 1, n, life, len(uses)))
        per_file[f] = c
        total += c
    share = lambda k: f"{100 * total['one' + k] / max(1, total['all' + k]):.1f} % ({total['one' + k]} of {total['all' + k]})"
    print("one-letter bindings and parameters:", share(""))
    c = total
    w, n = c["one"] - c["one closure"], c["all"] - c["all closure"]
    print(f"without closures (near house.md's measure): {100 * w / max(1, n):.1f} % ({w} of {n})")
    for k in ("param", "let", "for", "iflet", "closure"):
        print(f"  {k}: {share(' ' + k)}")
    print(f"living longer than {o.lines} lines: {total['long']}, by letter: " + " ".join(f"{a}:{n}" for a, n in letters.most_common(26)))
    if o.files:
        for f, c in sorted(per_file.items(), key=lambda x: -x[1]["long"]):
            if c["long"]:
                print(f"{c['long']:4} of {c['one']:4} one-letter, {c['all']:4} in all  {f}")
    by = collections.defaultdict(list)
    for f, name, line, n, letter, life, uses in funcs:
        by[f, name, line, n].append((letter, life, uses))
    # What a reader holds in mind: lines of life, over all one-letter names of a function.
    rank = sorted(by.items(), key=lambda x: -sum(l for _, l, _ in x[1]))
    print(f"the {o.top} functions where words help most (letter:lines it lives/uses):")
    for (f, name, line, n), v in rank[:o.top]:
        print(f"{f}:{line} {name} ({n} lines): " + " ".join(f"{a}:{l}/{u}" for a, l, u in v))


if __name__ == "__main__":
    main()
