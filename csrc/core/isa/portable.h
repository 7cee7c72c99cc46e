/* portable.h: the instruction set that every machine has: what plain C compiles to. */
