#!/usr/bin/python3
"""The lint's own test: a small tree that is clean must pass, and each way to break a rule, planted
alone in that tree, must be found under the rule's name. A lint that cannot fail is no lint."""

import os
import subprocess
import sys
import tempfile
import unittest

LINT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../tools/lint/lint.py")

HEAD = "/* A file that is here to be looked at by the lint's test. */\n"

CLEAN = {
    "tools/lint/deps.txt":
        "# deps\nlib/base:\nlib/rt: lib/base\nproto/a: lib/base\nproto/b: lib/base\n",
    "tools/lint/allow.txt": "# exceptions\nlib/base/mem.c | memory | the one allocator\n",
    "lib/base/meson.build": "base_lib = static_library('base', 'mem.c')\n",
    "lib/base/mem.h": HEAD + "#pragma once\nvoid *mem_alloc(unsigned long n);\n",
    "lib/base/mem.c": HEAD + '#include "lib/base/mem.h"\n#include <stdlib.h>\n'
                      "void *mem_alloc(unsigned long n)\n{\n    return malloc(n);\n}\n",
    "lib/rt/meson.build": "rt_lib = static_library('rt', 'rt.c', dependencies: [base_dep])\n",
    "lib/rt/rt.h": HEAD + "#pragma once\nint rt_now(void);\n",
    "lib/rt/rt.c": HEAD + '#include "lib/base/mem.h"\n#include "lib/rt/rt.h"\n'
                   "/* read() and malloc() in a comment are fine */\n"
                   'static const char *text = "open(), time()";\n'
                   "int rt_now(void)\n{\n    return ops->read(text) + x.open(1);\n}\n",
    "proto/a/a.h": HEAD + "#pragma once\n",
    "proto/b/b.h": HEAD + "#pragma once\n",
    "README.md": "# A page\n",
}


def long_function(lines):
    return HEAD + "int f(void)\n{\n" + "    g();\n" * (lines - 2) + "}\n"


# rule that must be reported, then the files that differ from CLEAN
BROKEN = [
    ("include", {"lib/base/x.c": HEAD + '#include "lib/rt/rt.h"\n'}),
    ("include", {"proto/a/x.c": HEAD + '#include "proto/b/b.h"\n'}),
    ("include", {"lib/rt/x.c": HEAD + '#include "lib/rt/nowhere.h"\n'}),
    ("include", {"lib/rt/x.c": HEAD + '#include "rt.h"\n'}),
    ("include", {"lib/other/x.c": HEAD}),
    ("deps", {"tools/lint/deps.txt": CLEAN["tools/lint/deps.txt"].replace(
        "lib/base:", "lib/base: lib/rt")}),
    ("deps", {"tools/lint/deps.txt": CLEAN["tools/lint/deps.txt"] + "tools: lib/missing\n"}),
    ("deps", {"lib/rt/meson.build": "rt_lib = static_library('rt', 'rt.c')\n"}),
    ("deps", {"lib/base/meson.build": "base_lib = static_library('base', dependencies: rt_dep)\n"}),
    ("cycle", {"lib/rt/rt.h": HEAD + '#pragma once\n#include "lib/rt/two.h"\n',
               "lib/rt/two.h": HEAD + '#pragma once\n#include "lib/rt/rt.h"\n'}),
    ("cycle", {"lib/base/x.c": HEAD + '#include "lib/rt/rt.h"\n'}),
    ("banned", {"lib/rt/x.c": HEAD + "void f(void)\n{\n    free(p);\n}\n"}),
    ("banned", {"lib/rt/x.c": HEAD + "void f(void)\n{\n    x = (long)time(NULL);\n}\n"}),
    ("banned", {"lib/rt/x.c": HEAD + "void f(void)\n{\n    pthread_create(&t, 0, g, 0);\n}\n"}),
    ("banned", {"lib/rt/x.c": HEAD + "void f(void)\n{\n    n = pwrite(fd, b, n, 0);\n}\n"}),
    ("banned", {"lib/rt/x.c": HEAD + "void f(void)\n{\n    if (!connect (fd))\n        g();\n}\n"}),
    ("banned", {"lib/rt/x.c": HEAD + "void f(void)\n{\n    x = !rand();\n}\n"}),
    ("banned", {"lib/rt/x.c": HEAD + "void f(void)\n{\n    sprintf(b, s);\n}\n"}),
    ("banned", {"lib/rt/x.c": HEAD + "void f(void)\n{\n    system(s);\n}\n"}),
    ("banned", {"lib/base/mem.c": CLEAN["lib/base/mem.c"].replace("malloc(n)", "malloc(atoi(n))")}),
    ("cplusplus", {"lib/rt/x.cc": HEAD}),
    ("cplusplus", {"lib/base/x.cpp": HEAD}),
    ("head", {"lib/rt/x.c": "int a;\n"}),
    ("head", {"lib/rt/x.c": "/* x */\nint a;\n"}),
    ("head", {"tools/x.py": "#!/usr/bin/python3\nimport os\n"}),
    ("head", {"tools/x": "#!/bin/bash\nset -e\n"}),
    ("once", {"lib/rt/x.h": HEAD}),
    ("file-len", {"lib/rt/x.c": HEAD + "int a;\n" * 1000}),
    ("func-len", {"lib/rt/x.c": long_function(81)}),
    ("layout", {"lib/rt/x.c": HEAD + "\tint a;\n"}),
    ("layout", {"lib/rt/x.c": HEAD + "int a; \n"}),
    ("layout", {"lib/rt/x.c": HEAD + "int a; /*" + "-" * 92 + "*/\n"}),
    ("layout", {"README.md": "# A page"}),
    ("words", {"README.md": "# A page\nsee /wor" "k/main\n"}),
    ("words", {"lib/rt/x.c": HEAD + "/* TO" "DO: more */\n"}),
    ("words", {"lib/rt/x.c": HEAD + "/* this is fine For " "now */\n"}),
    ("allow", {"tools/lint/allow.txt": CLEAN["tools/lint/allow.txt"] + "lib/rt/* | file | why\n"}),
    ("allow", {"tools/lint/allow.txt": CLEAN["tools/lint/allow.txt"] + "lib/rt/rt.c | file\n"}),
]

# Trees that differ from CLEAN and are fine all the same.
FINE = [
    {"lib/rt/x.c": long_function(80)},
    {"lib/rt/x.c": HEAD + "int f(int (*read)(int), struct s *p)\n{\n    return p->free(1);\n}\n"},
    {"lib/rt/x.c": HEAD + "int f(void)\n{\n    return my_free(1) + env_open(2) + runtime(3);\n}\n"},
    {"lib/rt/x.c": HEAD + "int f(void)\n{\n    return g('\"') + '\\'' + h(\"/* open(\");\n}\n"},
    {"lib/rt/x.c": HEAD + "int f(void)\n{\n    free(p);\n}\n",
     "tools/lint/allow.txt": CLEAN["tools/lint/allow.txt"] + "lib/**.c | free | a reason\n"},
]


def run_lint(changes):
    with tempfile.TemporaryDirectory() as root:
        for path, text in {**CLEAN, **changes}.items():
            full = os.path.join(root, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "w", encoding="utf-8") as f:
                f.write(text)
        done = subprocess.run([sys.executable, LINT, "--root", root], capture_output=True,
                              text=True, check=False)
        return done.returncode, done.stdout + done.stderr


class LintTest(unittest.TestCase):
    def test_clean_tree_passes(self):
        for changes in [{}] + FINE:
            with self.subTest(changes=changes):
                code, out = run_lint(changes)
                self.assertEqual(code, 0, out)

    def test_each_violation_is_found(self):
        for rule, changes in BROKEN:
            with self.subTest(rule=rule, changes=changes):
                code, out = run_lint(changes)
                self.assertEqual(code, 1, out)
                self.assertIn(f": {rule}: ", out)


if __name__ == "__main__":
    unittest.main()
