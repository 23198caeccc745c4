"""A gdb command that shows where each fiber of an env is suspended, as `thread apply all bt` does
for threads.

  gdb -p PID -ex 'source tools/gdb-fibers.py' -ex 'fibers partition->env'
  (gdb) fibers ENV        ENV: an expression that gives a struct env *

A suspended fiber's registers are in its sigjmp_buf, where glibc has mangled the frame pointer and
the program counter; the callers are found by frame pointers, which the project is built with.
x86-64 only.
"""

import gdb

RBP, PC = 1, 7  # places in glibc's __jmp_buf
DEPTH = 40


def demangle(value, guard):
    """PTR_DEMANGLE: rotated by 17 bits, then xored with the thread's pointer guard."""
    value &= (1 << 64) - 1
    value = (value >> 17 | value << 47) & ((1 << 64) - 1)
    return value ^ guard


def word(address):
    data = gdb.selected_inferior().read_memory(address, 8)
    return int.from_bytes(data.tobytes(), "little")


def place(pc):
    block = gdb.block_for_pc(pc)
    while block and not block.function:
        block = block.superblock
    sal = gdb.find_pc_line(pc - 1)
    where = f" at {sal.symtab.filename}:{sal.line}" if sal.symtab else ""
    return f"{block.function.name if block else hex(pc)}{where}"


def frames(fiber, guard):
    """Program counters from the innermost on."""
    registers = fiber["jmp"][0]["__jmpbuf"]
    pc, rbp = (demangle(int(registers[i]), guard) for i in (PC, RBP))
    for _ in range(DEPTH):
        if not pc:
            return
        yield pc
        try:
            pc, rbp = word(rbp + 8), word(rbp)
        except gdb.MemoryError:
            return


class Fibers(gdb.Command):
    """fibers ENV: where each fiber of a struct env * is suspended."""

    def __init__(self):
        super().__init__("fibers", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        env = gdb.parse_and_eval(argument)
        guard = word(int(gdb.parse_and_eval("$fs_base")) + 0x30)
        fiber_type = gdb.lookup_type("struct fiber")
        offset = next(f.bitpos // 8 for f in fiber_type.fields() if f.name == "all")
        head = env["fibers"].address
        link = head.dereference()["next"]
        while link != head:
            fiber = gdb.Value(int(link) - offset).cast(fiber_type.pointer()).dereference()
            why = fiber["why"].string() if fiber["why"] else "running"
            print(f'{fiber["name"].string()}: {why}')
            if fiber["started"] and fiber["why"]:
                for pc in frames(fiber, guard):
                    print(f"    {place(pc)}")
            link = link.dereference()["next"]


Fibers()
