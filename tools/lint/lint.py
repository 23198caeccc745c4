#!/usr/bin/python3
"""Checks the rules of the house that a compiler does not.

What is checked, by the name that a finding carries:

  include    a header of a folder that deps.txt does not allow, or that does not exist
  deps       deps.txt has a cycle, or a folder's meson.build does not say what the folder uses
  cycle      files or folders that include each other
  banned     a call that belongs behind a seam (time, randomness, threads, files, sockets, memory)
             or that is unsafe on strings; allow.txt lists the few places where it is right
  cplusplus  C++ outside lib/dicom
  head       a source file that does not begin with a comment saying what it is for
  once       a header without #pragma once
  file-len   a source file over 1000 lines
  func-len   a function over 80 lines
  layout     tabs, trailing spaces, lines over 100 columns, no newline at the end
  words      text that must not stay in the tree
  allow      an exception that nothing needs, or that cannot be read

Usage: lint.py [--root DIR] [--only RULE,...]. Prints one finding a line, exits 1 when there is any.
"""

import argparse
import os
import re
import sys

C_SUFFIXES = (".c", ".h", ".cc", ".hh")
CODE_SUFFIXES = C_SUFFIXES + (".py", ".sh")
TOP = ("daemon", "lib", "tiering", "dedup", "proto", "tools", "tests", "docs", ".ci")
MAX_FILE_LINES = 1000
MAX_FUNCTION_LINES = 80
MAX_COLUMNS = 100
MIN_HEAD_CHARS = 15

BANNED = {
    "thread": r"pthread_\w+|thrd_\w+|mtx_\w+|cnd_\w+|sem_(?:init|wait|post|timedwait)",
    "clock": r"clock_gettime|time|gettimeofday|clock|sleep|usleep|nanosleep|clock_nanosleep|"
             r"timer_create|timerfd_\w+|setitimer|alarm",
    "random": r"rand|srand|rand_r|random|srandom|[dlm]rand48|getrandom|getentropy|arc4random\w*|"
              r"RAND_\w*bytes",
    "file": r"open|openat|creat|close|read|write|readv|writev|pread|pwrite|preadv2?|pwritev2?|"
            r"fsync|fdatasync|sync_file_range|sync|ftruncate|truncate|fallocate|posix_fallocate|"
            r"lseek|mmap|unlink|unlinkat|rename|renameat2?|mkdir|rmdir|stat|lstat|fstat|fstatat|"
            r"statfs|fstatfs|statvfs|flock|ioctl|fcntl|opendir|readdir|scandir|fopen|fdopen|"
            r"freopen|fread|fwrite|fclose|fgets|fseeko?|getline|tmpfile|mkstemp|mkdtemp|access",
    "socket": r"socket|socketpair|bind|listen|accept4?|connect|send|sendto|sendmsg|recv|recvfrom|"
              r"recvmsg|setsockopt|getsockopt|getaddrinfo|poll|ppoll|select|epoll_\w+|shutdown",
    "process": r"fork|vfork|system|popen|exec[lv]\w*|posix_spawnp?",
    "memory": r"malloc|calloc|realloc|reallocarray|free|strdup|strndup|aligned_alloc|memalign|"
              r"posix_memalign|v?asprintf|alloca",
    "string": r"strcpy|strcat|stpcpy|v?sprintf|gets|ato[ifl]|atoll|strtok|s?scanf|fscanf",
}
# A call: the name with a parenthesis after it, not a member (x.open, x->open), not (*open).
CALLS = {g: re.compile(r"(?<![\w.>*])(?:(?<=\W)|^)(%s)\s*\(" % names, re.M)
         for g, names in BANNED.items()}

# In pieces, so that this file passes its own check.
WORDS = [
    (re.compile(r"/wor" r"k/"), "a path of one machine"),
    (re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b"), "unfinished work: finish it or file it"),
    (re.compile(r"\bfor " r"now\b", re.I), "unfinished work: say what is, not what will be"),
]

DEP_WORD = re.compile(r"\b(\w+)_dep\b")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.M)


def strip_code(text, keep_strings=False):
    """The C text with comments (and the contents of strings) blanked, line numbers kept."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?(?:\*/|\Z)|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)

    def blank(m):
        s = m.group(0)
        if s[0] in "\"'":
            return s if keep_strings else s[0] + " " * (len(s) - 2) + s[-1]
        return re.sub(r"[^\n]", " ", s)

    return pattern.sub(blank, text)


def line_of(text, pos):
    return text.count("\n", 0, pos) + 1


def glob_regex(pattern):
    out = ""
    for part in re.split(r"(\*\*|\*)", pattern):
        out += {"**": ".*", "*": "[^/]*"}.get(part, re.escape(part))
    return re.compile(out + r"\Z")


class Exceptions:
    """allow.txt: which finding is fine where, and whether each line of it is still needed."""

    def __init__(self, lint, path):
        self.rows = []
        self.path = path
        text = lint.read(path)
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip() or line.startswith("#"):
                continue
            parts = [p.strip() for p in line.split("|")]
            if len(parts) != 3 or not all(parts):
                lint.report(path, number, "allow", "want: path | what, ... | reason")
                continue
            for what in parts[1].split(","):
                self.rows.append([number, glob_regex(parts[0]), what.strip(), parts[0], False])

    def covers(self, path, *whats):
        found = False
        for row in self.rows:
            if row[2] in whats and row[1].match(path):
                row[4] = found = True
        return found

    def report_stale(self, lint):
        for number, _, what, pattern, used in self.rows:
            if not used:
                lint.report(self.path, number, "allow", f"nothing in {pattern} needs '{what}'")


class Lint:
    def __init__(self, root, only):
        self.root = root
        self.only = only
        self.findings = []
        self.texts = {}
        self.files = sorted(self.walk())
        self.deps = self.read_deps("tools/lint/deps.txt")
        self.allow = Exceptions(self, "tools/lint/allow.txt")

    # ---- The tree ------------------------------------------------------------------------------

    def walk(self):
        for name in os.listdir(self.root):
            if os.path.isfile(os.path.join(self.root, name)) and name != "LICENSE":
                yield name
        for top in TOP:
            for folder, subdirs, names in os.walk(os.path.join(self.root, top)):
                subdirs[:] = [d for d in subdirs if d != "__pycache__" and d != "corpus"]
                for name in names:
                    if not name.endswith((".pyc", ".o")):
                        yield os.path.relpath(os.path.join(folder, name), self.root)

    def read(self, path):
        if path not in self.texts:
            try:
                with open(os.path.join(self.root, path), encoding="utf-8") as f:
                    self.texts[path] = f.read()
            except FileNotFoundError:
                self.texts[path] = ""
            except UnicodeDecodeError:
                self.texts[path] = ""
                self.report(path, 1, "layout", "not UTF-8 text")
        return self.texts[path]

    def report(self, path, line, rule, message):
        if not self.only or rule in self.only:
            self.findings.append((path, line, rule, message))

    def c_files(self):
        return [f for f in self.files if f.endswith(C_SUFFIXES)]

    def suffix_files(self, *suffixes):
        return [f for f in self.files if f.endswith(suffixes)]

    # ---- Direction of dependencies -------------------------------------------------------------

    def read_deps(self, path):
        deps = {}
        for number, line in enumerate(self.read(path).split("\n"), 1):
            if line.strip() and not line.startswith("#"):
                folder, colon, rest = line.partition(":")
                if not colon:
                    self.report(path, number, "deps", "want: folder: folders")
                deps[folder.strip()] = rest.split()
        for folder, allowed in deps.items():
            for other in allowed:
                if other not in deps:
                    self.report(path, 1, "deps", f"{folder} names {other}, which has no line")
        cycle = find_cycle(deps)
        if cycle:
            self.report(path, 1, "deps", "cycle: " + " -> ".join(cycle))
        return deps

    def folder_of(self, path):
        """The longest folder of deps.txt that holds the path; None when there is none."""
        folder = os.path.dirname(path)
        while folder and folder not in self.deps:
            folder = os.path.dirname(folder)
        return folder or None

    def check_includes(self):
        """Also builds the graphs for check_cycles and check_meson."""
        self.file_graph = {}
        self.uses = {}
        for path in self.c_files():
            folder = self.folder_of(path)
            if not folder:
                self.report(path, 1, "include", "this folder has no line in deps.txt")
                continue
            text = strip_code(self.read(path), keep_strings=True)
            for m in INCLUDE.finditer(text):
                self.check_include(path, folder, line_of(text, m.start()), m.group(1))

    def check_include(self, path, folder, line, target):
        other = self.folder_of(target)
        if target not in self.files:
            self.report(path, line, "include", f'"{target}" is no file, seen from the root')
            return
        self.file_graph.setdefault(path, []).append(target)
        if not other or other == folder:
            return
        self.uses.setdefault(folder, {}).setdefault(other, (path, line))
        if other not in self.deps[folder] and not self.allow.covers(path, "include"):
            self.report(path, line, "include", f"{folder} must not include {other}")

    def check_cycles(self):
        cycle = find_cycle(self.file_graph)
        if cycle:
            self.report(cycle[0], 1, "cycle", " -> ".join(cycle))
        cycle = find_cycle({f: list(o) for f, o in self.uses.items()})
        if cycle:
            self.report(cycle[0], 1, "cycle", " -> ".join(cycle))

    def check_meson(self):
        """A folder's meson.build names exactly what its files use, within what deps.txt allows."""
        objects = {dep_object(f): f for f in self.deps}
        for folder in self.deps:
            path = folder + "/meson.build"
            if folder.startswith(("tests", "tools")) or path not in self.files:
                continue
            text = re.sub(r"#[^\n]*", "", self.read(path))
            named = {objects[m + "_dep"] for m in DEP_WORD.findall(text) if m + "_dep" in objects}
            for other in sorted(named - {folder} - set(self.deps[folder])):
                self.report(path, 1, "deps", f"{folder} must not depend on {other}")
            for other, (user, line) in sorted(self.uses.get(folder, {}).items()):
                if other not in named and dep_object(other) != "api_dep":
                    self.report(user, line, "deps",
                                f"{path} does not name {dep_object(other)}, used here")

    # ---- Calls and language --------------------------------------------------------------------

    def check_banned(self):
        for path in self.c_files():
            text = strip_code(self.read(path))
            for group, pattern in CALLS.items():
                for m in pattern.finditer(text):
                    name = m.group(1)
                    if not self.allow.covers(path, group, name):
                        self.report(path, line_of(text, m.start(1)), "banned",
                                    f"{name}() ({group}): use the project's own (CONTRIBUTING.md)")

    def check_cplusplus(self):
        for path in self.suffix_files(".cc", ".hh", ".cpp", ".cxx", ".hpp", ".C"):
            if os.path.dirname(path) != "lib/dicom" or not path.endswith((".cc", ".hh")):
                self.report(path, 1, "cplusplus", "C++ belongs to lib/dicom/*.cc alone")

    # ---- Shape of files ------------------------------------------------------------------------

    def scripts(self):
        """Files without a suffix that begin with #!."""
        return [f for f in self.files
                if "." not in os.path.basename(f) and self.read(f).startswith("#!")]

    def check_heads(self):
        for path in self.c_files():
            m = re.match(r"\s*(?:/\*(.*?)\*/|((?://[^\n]*\n)+))", self.read(path), re.S)
            head = re.sub(r"[\s*/]+", " ", (m.group(1) or m.group(2)) if m else "")
            if len(head.strip()) < MIN_HEAD_CHARS:
                self.report(path, 1, "head", "begin with a comment that says what the file is for")
            once = re.search(r"^#pragma once$", self.read(path), re.M)
            if path.endswith((".h", ".hh")) and not once:
                self.report(path, 1, "once", "no #pragma once")
        for path in sorted(set(self.suffix_files(".py", ".sh") + self.scripts())):
            text = re.sub(r"\A#![^\n]*\n", "", self.read(path))
            m = re.match(r'\s*(?:"""(.*?)"""|((?:#[^\n]*\n)+))', text, re.S)
            if not m or len((m.group(1) or m.group(2)).strip()) < MIN_HEAD_CHARS:
                self.report(path, 1, "head", "begin with a comment that says what the file is for")

    def check_lengths(self):
        for path in self.suffix_files(*CODE_SUFFIXES):
            lines = self.read(path).count("\n")
            if lines > MAX_FILE_LINES and not self.allow.covers(path, "file-len"):
                self.report(path, 1, "file-len", f"{lines} lines: split it by purpose")
        for path in self.c_files():
            for name, line, length in functions(strip_code(self.read(path))):
                if length > MAX_FUNCTION_LINES and not self.allow.covers(path, name):
                    self.report(path, line, "func-len", f"{name}() has {length} lines: split it")

    def check_layout(self):
        known = CODE_SUFFIXES + (".md", ".txt", ".build", ".ini", ".yml", ".json")
        for path in sorted(set(self.suffix_files(*known) + self.scripts())):
            text = self.read(path)
            wide = not path.endswith((".md", ".txt", ".json"))
            if text and not text.endswith("\n"):
                self.report(path, text.count("\n") + 1, "layout", "no newline at the end")
            for number, line in enumerate(text.split("\n"), 1):
                if "\t" in line:
                    self.report(path, number, "layout", "tab")
                if line != line.rstrip():
                    self.report(path, number, "layout", "trailing space")
                if wide and len(line) > MAX_COLUMNS:
                    self.report(path, number, "layout", f"{len(line)} columns")

    def check_words(self):
        for path in self.files:
            text = self.read(path)
            for pattern, why in WORDS:
                for m in pattern.finditer(text):
                    if not self.allow.covers(path, "words"):
                        self.report(path, line_of(text, m.start()), "words",
                                    f"'{m.group(0)}': {why}")

    def run(self):
        self.check_includes()
        self.check_cycles()
        self.check_meson()
        self.check_banned()
        self.check_cplusplus()
        self.check_heads()
        self.check_lengths()
        self.check_layout()
        self.check_words()
        self.allow.report_stale(self)
        return sorted(set(self.findings))


def dep_object(folder):
    """lib/rt -> rt_dep, proto/nbd -> proto_nbd_dep, dedup -> dedup_dep."""
    name = folder[4:] if folder.startswith("lib/") else folder
    return name.replace("/", "_") + "_dep"


def find_cycle(graph):
    """One cycle as a list that ends where it begins, or None."""
    done = set()
    for start in sorted(graph):
        path, iters = [start], [iter(graph.get(start, ()))]
        while path:
            for node in iters[-1]:
                if node in path:
                    return path[path.index(node):] + [node]
                if node not in done:
                    path.append(node)
                    iters.append(iter(graph.get(node, ())))
                    break
            else:
                done.add(path.pop())
                iters.pop()
    return None


def functions(code):
    """(name, line, lines of the body) of each function: by the project's style its braces stand
    alone in the first column and the line before the opening one ends the parameter list."""
    lines = code.split("\n")
    start = None
    for i, line in enumerate(lines):
        if line == "{" and i and re.search(r"\)\s*(const|noexcept|override)?\s*$", lines[i - 1]):
            start = i
        elif line.startswith("}") and start is not None:
            head = " ".join(lines[max(0, start - 8):start])
            names = re.findall(r"([A-Za-z_]\w*)\s*\(", re.split(r"[;}]", head)[-1])
            yield (names[0] if names else "?"), start + 1, i - start + 1
            start = None


def main():
    parser = argparse.ArgumentParser(description="checks the rules of the house")
    parser.add_argument("--root", default=os.path.join(os.path.dirname(__file__), "..", ".."))
    parser.add_argument("--only", default="", help="rules, comma-separated")
    args = parser.parse_args()
    lint = Lint(os.path.abspath(args.root), set(filter(None, args.only.split(","))))
    findings = lint.run()
    for path, line, rule, message in findings:
        print(f"{path}:{line}: {rule}: {message}")
    print(f"lint: {len(lint.files)} files, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
