"""occ.py ROOT NAME [GLOB...]: where an identifier occurs in code (not in strings), grouped by shape."""
import sys, subprocess, fnmatch, collections
sys.path.insert(0, "/root/lead")
from rustlex import lex
root, name, globs = sys.argv[1], sys.argv[2], sys.argv[3:] or ["*"]
files = subprocess.run(["git", "-C", root, "ls-files", "*.rs"], capture_output=True, text=True).stdout.split()
for f in files:
    if not any(fnmatch.fnmatch(f, g) for g in globs): continue
    t = open(f"{root}/{f}").read()
    if name not in t: continue
    toks = [k for k in lex(t)]
    for i, (k, a, b) in enumerate(toks):
        if k == "id" and t[a:b] == name:
            ln = t.count("\n", 0, a) + 1
            print(f"{f}:{ln}: {t[t.rfind(chr(10),0,a)+1:t.find(chr(10),a)].strip()[:130]}")
